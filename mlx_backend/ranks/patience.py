"""Rules by which a peer counts as lost although its connection is open. Pure; no clock.

A closed connection is noticed at once. Silence alone may be a network that comes back, so an idle group waits long. A
working group cannot continue without the peer: there the limits of silence and of time without progress are short.
"""

from __future__ import annotations

from dataclasses import dataclass

BEAT_S = 1.0
"""Interval of the messages by which every rank shows that it is alive."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Limits in seconds."""

    silence_s: float = 300.0
    busy_silence_s: float = 20.0
    """Silence while work waits: 20 missed beats."""
    stall_s: float = 180.0
    """Time in which no waiting call completes: a chunk takes 2 s, and the device's first compilations some more."""

    def loss(self, *, silent_s: float, stalled_s: float, is_busy: bool) -> str | None:
        """Return why the peer is lost, or None if it is not.

        `silent_s`: since its last frame; `stalled_s`: since it last completed a call.
        """
        if silent_s > (self.busy_silence_s if is_busy else self.silence_s):
            return f"was not heard for {silent_s:.0f} s"
        if is_busy and stalled_s > self.stall_s:
            return f"has made no progress for {stalled_s:.0f} s"
        return None
