"""The last errors returned to clients, for operators. Contains no text from clients."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from server.errors import APIError, describe_error

KEPT = 20
_MAX_CHARS = 300


@dataclass(slots=True)
class RecentError:
    """One error; repeated ones are merged. `at` (Unix time) and `request_id` are those of the last."""

    at: float
    request_id: str
    status: int
    code: str
    message: str
    count: int = 1


class RecentErrors:
    """The last KEPT errors, newest first."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._found: deque[RecentError] = deque(maxlen=KEPT)

    def add(self, error: APIError | None, request_id: str) -> None:
        """Add `error` of one more request, unless it is None."""
        if error is None:
            return
        told = describe_error(error)[:_MAX_CHARS]
        new = RecentError(self._clock(), request_id, error.status, error.code or error.type, told)
        for known in self._found:
            if (known.status, known.code, known.message) == (new.status, new.code, new.message):
                new.count += known.count
                self._found.remove(known)
                break
        self._found.appendleft(new)

    def list(self) -> list[RecentError]:
        return list(self._found)
