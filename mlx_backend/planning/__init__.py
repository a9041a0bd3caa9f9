"""Arithmetic of memory and speed: what fits, and how fast it should be. No MLX."""
