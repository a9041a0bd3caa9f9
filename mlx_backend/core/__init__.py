"""Data types that the engine, the prefix cache and the runners share. No MLX, no threads."""
