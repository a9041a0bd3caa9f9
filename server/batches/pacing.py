"""Handling of answers, and waiting times when the server is busy or unreachable. Pure decisions."""

from __future__ import annotations

from enum import Enum

from server.batches.answers import Answer

MAX_ATTEMPTS = 3
"""Most times that a line is sent if the server fails to answer it."""
_BUSY = frozenset({408, 425, 429, 502, 503, 504, 529})
_REFUSED = frozenset({401, 403, 407})
_FIRST_WAIT_S, _MOST_WAIT_S = 0.5, 60.0
_LEAST_ASKED_S, _MOST_ASKED_S = 0.05, 600.0


class Decision(Enum):
    """Handling of an answer."""

    WRITE = "write"
    """It is the line's answer."""
    WAIT = "wait"
    """The server is busy: all lines wait, and this one is sent again."""
    AGAIN = "again"
    """The server failed: the line is sent again."""
    STOP = "stop"
    """The server refuses all lines: the run ends."""


def decide(status: int, num_attempts: int) -> Decision:
    """Return the handling of an answer to a line that was sent `num_attempts` times."""
    if status in _BUSY:
        return Decision.WAIT
    if status in _REFUSED:
        return Decision.STOP
    if status < 200 or 300 <= status < 400:
        return Decision.STOP  # a redirect
    if status >= 500 and num_attempts < MAX_ATTEMPTS:
        return Decision.AGAIN
    return Decision.WRITE


class Backoff:
    """Waiting times for a busy or unreachable server: as it requests, or longer each time."""

    def __init__(self) -> None:
        self._num_waits = 0

    def wait_s(self, answer: Answer | None) -> float:
        """Return the seconds to wait after an answer, or after none."""
        asked_s = answer.retry_after_s if answer is not None else None
        own_s = min(_MOST_WAIT_S, _FIRST_WAIT_S * 2**self._num_waits)
        self._num_waits = min(self._num_waits + 1, 16)
        return own_s if asked_s is None else min(_MOST_ASKED_S, max(_LEAST_ASKED_S, asked_s))

    def reset(self) -> None:
        """Start again with short waits: the server has answered."""
        self._num_waits = 0
