"""The engine's interface: the modules that the server may import. No MLX."""
