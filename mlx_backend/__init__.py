"""The engine: batching, KV caches, sampling. Imports nothing from `server`, and no MLX until a runner loads."""
