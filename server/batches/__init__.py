"""Batches: files of requests, each line answered once, when there is room. Pure: no HTTP, no service, no engine."""
