"""The acceptance kit: what a new machine is measured by, step after step. No MLX here: each step is a process."""
