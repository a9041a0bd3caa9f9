"""The device thread: its loop, its scheduler and its streams. No MLX."""
