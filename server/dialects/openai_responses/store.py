"""Bounded in-memory store of responses. Each belongs to a key and is invisible to others.

Stores JSON texts by id; does not parse items. On the event loop only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of the whole store."""

    max_count: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Stored:
    """One answer: the response and its input items, as JSON; and the id of the previous response, if any."""

    response: bytes
    items: bytes
    previous_id: str | None = None

    @property
    def num_bytes(self) -> int:
        return len(self.response) + len(self.items)


class NotStored(LookupError):
    """No response with this id is stored for this key."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.id = id


class ResponseStore:
    """Responses by key and id, the most recently used last."""

    def __init__(self, bounds: Callable[[], Bounds]) -> None:
        """`bounds` is called on every insertion."""
        self._bounds = bounds
        self._by_owner: dict[str, OrderedDict[str, Stored]] = {}
        self._bytes: dict[str, int] = {}

    @property
    def num_bytes(self) -> int:
        return sum(self._bytes.values())

    def __len__(self) -> int:
        return sum(map(len, self._by_owner.values()))

    @property
    def is_open(self) -> bool:
        """Whether the store accepts anything."""
        return self._bounds().max_count > 0 and self._bounds().max_bytes > 0

    def put(self, owner: str, id: str, stored: Stored) -> None:
        """Store it if it fits; the oldest of the owner with the largest share are evicted."""
        bounds = self._bounds()
        if stored.num_bytes > bounds.max_bytes:
            return  # it would evict all others, and then itself
        self._by_owner.setdefault(owner, OrderedDict())[id] = stored
        self._bytes[owner] = self._bytes.get(owner, 0) + stored.num_bytes
        while len(self) > bounds.max_count or self.num_bytes > bounds.max_bytes:
            largest = max(self._bytes, key=lambda each: (self._bytes[each], each != owner))
            self._drop(largest, next(iter(self._by_owner[largest])))

    def get(self, owner: str, id: str) -> Stored:
        """Return a response. Raises NotStored."""
        kept = self._by_owner.get(owner, OrderedDict())
        if id not in kept:
            raise NotStored(id)
        kept.move_to_end(id)
        return kept[id]

    def chain(self, owner: str, id: str) -> list[Stored]:
        """Return a response and its predecessors, the first of them first. Raises NotStored if any is gone."""
        found = list(self._back(owner, id))  # the first is used last, so it is evicted after those that need it
        return found[::-1]

    def delete(self, owner: str, id: str) -> None:
        """Delete a response. Raises NotStored."""
        self.get(owner, id)
        self._drop(owner, id)

    def _back(self, owner: str, id: str | None) -> Iterator[Stored]:
        while id is not None:
            stored = self.get(owner, id)
            yield stored
            id = stored.previous_id

    def _drop(self, owner: str, id: str) -> None:
        kept = self._by_owner[owner]
        self._bytes[owner] -= kept.pop(id).num_bytes
        if not kept:
            del self._by_owner[owner], self._bytes[owner]
