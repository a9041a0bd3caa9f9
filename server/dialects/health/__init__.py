"""Probes: `/health`, `/ready`, `/version`."""
