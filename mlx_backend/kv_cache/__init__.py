"""KV caches of a batch of rows: one kind per file, looked up in `spec`."""
