"""The doors of the engine: what the server may import. No MLX."""
