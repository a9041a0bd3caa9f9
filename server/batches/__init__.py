"""Batches: files of requests, each line answered once. Pure: no HTTP, no service, no engine."""
