"""How much the files of a server may take: bytes of all and of each owner, counted as they are written."""

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
    """Files; as many batches may be kept beside them."""
    keep_s: float

    def share_of(self, owner: str, total: int) -> int:
        """Return what one owner may have of a total: half of it, so that others find room; all where there is one."""
        return max(1, total // 2) if owner else total


class StoreFull(Exception):
    """There is no room for more; what is kept stays. One line for the client."""


class Room:
    """Bytes by owner. Any thread may ask."""

    def __init__(self, bounds: Callable[[], Bounds]) -> None:
        self._bounds = bounds
        self._bytes: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        return self._bytes.total()

    def take(self, owner: str, num_bytes: int) -> None:
        """Count bytes that are about to be written. Raises StoreFull, and counts nothing."""
        bounds = self._bounds()
        with self._lock:
            if self.num_bytes + num_bytes > bounds.max_bytes:
                raise StoreFull("The server's files take all the room there is; delete some, or try later.")
            most = bounds.share_of(owner, bounds.max_bytes)
            if self._bytes[owner] + num_bytes > most:
                raise StoreFull(f"The files of one key may take {most} bytes, and yours do; delete some.")
            self._bytes[owner] += num_bytes

    def hold(self, owner: str, num_bytes: int) -> None:
        """Count bytes that are there already."""
        with self._lock:
            self._bytes[owner] += num_bytes

    def give_back(self, owner: str, num_bytes: int) -> None:
        """Count bytes that are gone."""
        with self._lock:
            self._bytes[owner] -= num_bytes
            if not self._bytes[owner]:
                del self._bytes[owner]
