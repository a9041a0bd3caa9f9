"""Durations of the parts of one job, in seconds. Reads no clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JobTimings:
    """Durations from the request to its last token. `total_s` includes the time in the queue, which is in no part."""

    total_s: float = 0.0
    load_s: float = 0.0
    """Time until the model was loaded."""
    prompt_s: float = 0.0
    """Time from the end of the queue to the first token."""
    output_s: float = 0.0
    """Time from the first token to the last."""
