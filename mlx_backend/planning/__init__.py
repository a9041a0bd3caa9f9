"""What fits into memory and how fast it should be: arithmetic. No MLX."""
