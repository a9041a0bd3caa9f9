"""When a peer that has not closed its connection is lost all the same. Pure; no clock.

A closed connection says so at once. Silence alone may be a network that comes back, so an idle group waits long. A
group that works cannot go on without the peer: there silence is short, and so is the time without progress.
"""

from __future__ import annotations

from dataclasses import dataclass

BEAT_S = 1.0
"""Every rank says so often that it is there."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds."""

    silence_s: float = 300.0
    busy_silence_s: float = 20.0
    """Silence while work waits: 20 beats that did not come."""
    stall_s: float = 180.0
    """Calls that wait while none is completed: a chunk takes 2 s, and what a device compiles first some more."""

    def loss(self, *, silent_s: float, stalled_s: float, is_busy: bool) -> str | None:
        """Return why the peer is lost, None where it is not.

        `silent_s`: since it was last heard; `stalled_s`: since it last completed a call.
        """
        if silent_s > (self.busy_silence_s if is_busy else self.silence_s):
            return f"was not heard for {silent_s:.0f} s"
        if is_busy and stalled_s > self.stall_s:
            return f"has made no progress for {stalled_s:.0f} s"
        return None
