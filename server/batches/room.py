"""Size limits of a server's files: bytes in total and per owner, counted as they are written."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of a store."""

    max_bytes: int
    max_file_bytes: int
    max_files: int
    """Most files; the same limit applies to batches."""
    keep_s: float

    def share_of(self, owner: str, total: int) -> int:
        """Return one owner's share of a total: half of it, to leave room for others; all without keys."""
        return max(1, total // 2) if owner else total


class StoreFull(Exception):
    """There is no room for more; existing files stay. The message is one line for the client."""


class Room:
    """Bytes by owner. Thread-safe."""

    def __init__(self, bounds: Callable[[], Bounds]) -> None:
        self._bounds = bounds
        self._bytes: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        return self._bytes.total()

    def take(self, owner: str, num_bytes: int) -> None:
        """Count bytes before they are written. Raises StoreFull, and then counts nothing."""
        bounds = self._bounds()
        with self._lock:
            if self.num_bytes + num_bytes > bounds.max_bytes:
                raise StoreFull("The server's files take all the room there is; delete some, or try later.")
            most = bounds.share_of(owner, bounds.max_bytes)
            if self._bytes[owner] + num_bytes > most:
                raise StoreFull(f"The files of one key may take {most} bytes, and yours do; delete some.")
            self._bytes[owner] += num_bytes

    def hold(self, owner: str, num_bytes: int) -> None:
        """Count existing bytes."""
        with self._lock:
            self._bytes[owner] += num_bytes

    def give_back(self, owner: str, num_bytes: int) -> None:
        """Subtract deleted bytes."""
        with self._lock:
            self._bytes[owner] -= num_bytes
            if not self._bytes[owner]:
                del self._bytes[owner]
