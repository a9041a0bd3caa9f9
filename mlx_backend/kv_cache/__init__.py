"""KV caches of a batch of rows: one kind a file, looked up in `spec`."""
