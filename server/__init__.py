"""HTTP and text. Imports no MLX; talks to the engine through `mlx_backend.api.interface`."""

__version__ = "0.1.0"
