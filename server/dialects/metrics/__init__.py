"""What the server counts and holds, in Prometheus' text format."""
