"""Measurements of the acceptance kit, each run in a process of its own: `python -m mlx_backend.acceptance STEP`."""
