"""Formatting of a plan's numbers: no more digits than an estimate has."""

from __future__ import annotations

from mlx_backend.planning.speed import Estimate


def speed_range(estimate: Estimate | None) -> str:
    """`19.4-23.1`; nothing where it cannot be told."""
    if estimate is None:
        return ""
    digits = 1 if estimate.low < 20 else 0
    return f"{estimate.low:,.{digits}f}-{estimate.high:,.{digits}f}"


def duration(seconds: float) -> str:
    """`12 s`, `4 min`, `1.4 h`: no more digits than the estimate has."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def count_of(number: int) -> str:
    """`671.0 B`, `4.9 M`."""
    return f"{number / 1e9:,.1f} B" if number >= 10**9 else f"{number / 1e6:,.1f} M"


def gigabytes(num_bytes: int) -> str:
    """`377.6`, `0.049`."""
    return f"{num_bytes / 1e9:,.1f}" if num_bytes >= 10**8 else f"{num_bytes / 1e9:,.3f}"
