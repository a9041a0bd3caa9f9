"""Holdings: the bytes of every rank, each counted after the same call, so that they can be compared. Pure; no clock.

Rank 0 schedules the counts, in the order of its calls. The newest count that all ranks have answered is shown. It
covers the KV caches of live sequences and the device's allocations; blocks of the prefix cache are in the second figure
only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

EVERY_S = 1.0


class Held(NamedTuple):
    """Bytes of one rank: KV caches of live sequences, the device's current allocations, and their peak."""

    kv: int = 0
    active: int = 0
    peak: int = 0


def read_held(fields: Mapping[str, Any]) -> Held:
    """Return the count of another rank. Raises KeyError or TypeError if it is invalid."""
    found = [fields[name] for name in Held._fields]
    if not all(type(each) is int for each in found):
        raise TypeError(f"{found} are no numbers of bytes")
    return Held(*found)


class Holdings:
    """Counts of all ranks. Used by one thread at a time."""

    def __init__(self) -> None:
        self._counts: list[dict[int, Held]] = [{}]
        """For each rank: its counts, by the number of the count."""
        self._number = 0
        self._begun_at = float("-inf")
        self._has_changed = False

    def size(self, num_ranks: int) -> None:
        """Expect answers of this many ranks."""
        self._counts = [{} for _ in range(num_ranks)]

    def change(self) -> None:
        """Record a call, which may change the held bytes."""
        self._has_changed = True

    def is_due(self, kv: int, now: float) -> bool:
        """Return whether to count: periodically, and once when the last KV cache is gone."""
        return now - self._begun_at >= EVERY_S or (kv == 0 and self._has_changed)

    def begin(self, own: Held, now: float) -> int:
        """Record rank 0's count; return its number."""
        self._number, self._begun_at, self._has_changed = self._number + 1, now, False
        self.answer(0, self._number, own)
        return self._number

    def answer(self, rank: int, number: int, held: Held) -> None:
        """Record a rank's count. Ranks answer in the order of the requests."""
        self._counts[rank][number] = held
        whole = min(max(counts, default=0) for counts in self._counts)
        for counts in self._counts:
            for old in [each for each in counts if each < whole]:
                del counts[old]

    def newest(self) -> tuple[Held, ...]:
        """Return every rank's bytes at the newest count that all have answered."""
        whole = min(max(counts, default=0) for counts in self._counts)
        return tuple(counts.get(whole, Held()) for counts in self._counts)
