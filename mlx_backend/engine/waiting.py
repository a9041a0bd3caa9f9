"""The queue of prompts that have no place yet. Tenants take turns; within one, first come, first served.

With one tenant it is a plain queue. The device thread owns it; others may read `len` and `count`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

from mlx_backend.core.sequence import SequenceGroup


class WaitingQueue:
    """Queue in which the tenant at turn contributes its oldest request; an admission ends the turn."""

    def __init__(self) -> None:
        self._front: deque[SequenceGroup] = deque()
        """Requests that had a place and lost it: ahead of every turn."""
        self._of: dict[str, deque[SequenceGroup]] = {}
        """Requests by tenant, in the order of turns. No tenant's queue is empty."""

    def __len__(self) -> int:
        return len(self._front) + sum(map(len, list(self._of.values())))

    def __iter__(self) -> Iterator[SequenceGroup]:
        """Yield all requests, tenant by tenant."""
        yield from self._front
        for queue in self._of.values():
            yield from queue

    def __contains__(self, group: object) -> bool:
        return any(waiting is group for waiting in self)

    @property
    def first(self) -> SequenceGroup:
        """Return the next request. It stays so until it is admitted or leaves, whatever arrives. Raises IndexError."""
        if self._front:
            return self._front[0]
        for queue in self._of.values():
            return queue[0]
        raise IndexError("nobody waits")

    def count(self, tenant: str) -> int:
        """Return how many of a tenant's requests wait for their turn."""
        return len(self._of.get(tenant, ()))

    def append(self, group: SequenceGroup) -> None:
        """Queue a request behind its tenant's others; a tenant without waiting requests gets the last turn."""
        self._of.setdefault(group.request.tenant, deque()).append(group)

    def appendleft(self, group: SequenceGroup) -> None:
        """Put a request ahead of every other."""
        self._front.appendleft(group)

    def popleft(self) -> SequenceGroup:
        """Take out the first request; its tenant's next turn is after all others'. Raises IndexError."""
        group = self.first
        if self._front:
            return self._front.popleft()
        queue = self._of.pop(group.request.tenant)
        queue.popleft()
        if queue:
            self._of[group.request.tenant] = queue
        return group

    def remove(self, group: SequenceGroup) -> None:
        """Take out a request that is given up. Raises ValueError."""
        if group in self._front:
            self._front.remove(group)
            return
        queue = self._of.get(group.request.tenant, deque())
        queue.remove(group)
        if not queue:
            del self._of[group.request.tenant]


class Counted(Protocol):
    """Requests that wait, counted."""

    def __len__(self) -> int: ...

    def count(self, tenant: str) -> int:
        """Return how many of a tenant's requests wait."""


def has_room(waiting: Counted, arrived: Iterable[SequenceGroup], new: Iterable[SequenceGroup], most: int) -> bool:
    """Return whether `new`, of one tenant, may wait beside waiting and `arrived` requests; at most `most` may.

    A named tenant leaves as many places free as it takes: alone it gets half of them, three get a quarter each, and the
    next one still finds a place. Without names all are one client, which may take every place.
    """
    here, coming = list(arrived), list(new)
    num_free = most - len(waiting) - len(here)
    if len(coming) > num_free:
        return False
    tenant = coming[0].request.tenant if coming else ""
    num_own = waiting.count(tenant) + sum(group.request.tenant == tenant for group in here)
    return not tenant or num_own + len(coming) <= max(num_free - len(coming), 1)
