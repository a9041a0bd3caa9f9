"""How long the parts of one job took, in seconds. Knows no clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JobTimings:
    """From the request to its last token. `total_s` has the time in the queue as well, which is in no part."""

    total_s: float = 0.0
    load_s: float = 0.0
    """Until the model was there."""
    prompt_s: float = 0.0
    """From the queue's end to the first token."""
    output_s: float = 0.0
    """From the first token to the last."""
