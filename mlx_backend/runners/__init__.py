"""Runners, which execute a StepPlan. `base` is the protocol; `mlx` and `mock` are looked up by name in the factory."""
