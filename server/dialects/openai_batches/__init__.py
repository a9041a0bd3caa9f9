"""OpenAI's files and batches: a file of requests, answered when there is capacity."""
