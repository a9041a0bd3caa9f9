"""Metrics of the server, in Prometheus' text format."""
