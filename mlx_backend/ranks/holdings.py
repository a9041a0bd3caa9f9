"""Holdings: the bytes of every rank, each counted after the same call, so that they can be compared. Pure; no clock.

Rank 0 says when to count, in the order of its calls. What is shown is the newest count that all ranks have answered.
Counted are the KV caches of live sequences and what the device has allocated; blocks of the prefix cache are in the
second figure only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

EVERY_S = 1.0


class Held(NamedTuple):
    """Bytes of one rank: KV caches of live sequences, what its device has allocated now, and the most so far."""

    kv: int = 0
    active: int = 0
    peak: int = 0


def read_held(fields: Mapping[str, Any]) -> Held:
    """Return what another rank has counted. Raises KeyError or TypeError where it is none."""
    found = [fields[name] for name in Held._fields]
    if not all(type(each) is int for each in found):
        raise TypeError(f"{found} are no numbers of bytes")
    return Held(*found)


class Holdings:
    """Used by one thread at a time."""

    def __init__(self) -> None:
        self._counts: list[dict[int, Held]] = [{}]
        """By rank: what it counted, by the number of the count."""
        self._number = 0
        self._begun_at = float("-inf")
        self._has_changed = False

    def size(self, num_ranks: int) -> None:
        """Expect answers of so many ranks."""
        self._counts = [{} for _ in range(num_ranks)]

    def change(self) -> None:
        """Note a call, which may change what is held."""
        self._has_changed = True

    def is_due(self, kv: int, now: float) -> bool:
        """Return whether to count: now and then, and once when the last KV cache is gone."""
        return now - self._begun_at >= EVERY_S or (kv == 0 and self._has_changed)

    def begin(self, own: Held, now: float) -> int:
        """Note what rank 0 holds; return the number of the count."""
        self._number, self._begun_at, self._has_changed = self._number + 1, now, False
        self.answer(0, self._number, own)
        return self._number

    def answer(self, rank: int, number: int, held: Held) -> None:
        """Note what a rank has counted. Ranks answer in the order in which they were asked."""
        self._counts[rank][number] = held
        whole = min(max(counts, default=0) for counts in self._counts)
        for counts in self._counts:
            for old in [each for each in counts if each < whole]:
                del counts[old]

    def newest(self) -> tuple[Held, ...]:
        """Return what every rank held at the newest count that all have answered."""
        whole = min(max(counts, default=0) for counts in self._counts)
        return tuple(counts.get(whole, Held()) for counts in self._counts)
