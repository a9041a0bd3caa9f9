"""The acceptance kit: measures a new machine, step by step. No MLX here: each step is a process."""
