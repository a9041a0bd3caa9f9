"""The monitoring files and their queries. `python -m scripts.monitoring` runs them in the real Prometheus."""
