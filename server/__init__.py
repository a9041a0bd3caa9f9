"""HTTP and text. Imports no MLX; calls the engine through `mlx_backend.api.interface`."""

__version__ = "0.1.0"
