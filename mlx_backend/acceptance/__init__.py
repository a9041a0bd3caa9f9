"""Measurements of the acceptance kit, each run in its own process: `python -m mlx_backend.acceptance STEP`."""
