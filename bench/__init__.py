"""The benchmark: Pippin beside raw mlx-lm and mlx_lm.server, in one run.

Imports neither `server` nor `mlx_backend`, except `kv_memory`, which measures the engine's runner in process.
"""
