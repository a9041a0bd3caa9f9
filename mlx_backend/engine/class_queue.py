"""The queue of prompts by class: the most urgent class first, without starving the others. No MLX, no clock.

Within a class tenants take turns. A class that waits while more urgent requests are admitted gets the next place after
`PATIENCE` of them. The device thread owns it; others may read lengths and counts.
"""

from __future__ import annotations

from collections.abc import Iterator

from mlx_backend.api.interface import PRIORITIES, Priority
from mlx_backend.core.sequence import SequenceGroup
from mlx_backend.engine.waiting import WaitingQueue

PATIENCE = 16
"""Admissions of more urgent requests after which a waiting class gets a place."""
_BATCH = PRIORITIES.index("batch")


def rank_of(group: SequenceGroup) -> int:
    """Return the place of a request's class among `PRIORITIES`: 0 is the most urgent."""
    return PRIORITIES.index(group.request.priority)


class ClassQueue:
    """A `WaitingQueue` for each class."""

    def __init__(self) -> None:
        self._queues = tuple(WaitingQueue() for _ in PRIORITIES)
        self._num_passed = [0] * len(PRIORITIES)
        """Admissions of more urgent requests since each class began to wait, or was last admitted."""

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def __iter__(self) -> Iterator[SequenceGroup]:
        """Yield all waiting requests, class by class and tenant by tenant."""
        for queue in self._queues:
            yield from queue

    def __contains__(self, group: object) -> bool:
        return any(group in queue for queue in self._queues)

    def of(self, priority: Priority) -> WaitingQueue:
        """Return the queue of a class."""
        return self._queues[PRIORITIES.index(priority)]

    @property
    def num_urgent(self) -> int:
        """Return how many requests wait that are not of class batch."""
        return sum(map(len, self._queues[:_BATCH]))

    def first(self, *, takes_batch: bool = True) -> SequenceGroup | None:
        """Return the request that gets the next place; None if none waits. `takes_batch`: it may be of class batch.

        It stays first until it is admitted or leaves, unless a request of a more urgent class arrives.
        """
        candidates = [rank for rank, queue in enumerate(self._queues) if queue and (takes_batch or rank != _BATCH)]
        if not candidates:
            return None
        impatient = [rank for rank in candidates if self._num_passed[rank] >= PATIENCE]
        return self._queues[max(impatient, default=candidates[0])].first

    def append(self, group: SequenceGroup) -> None:
        """Queue a request behind all others of its class and tenant."""
        self._queues[rank_of(group)].append(group)

    def appendleft(self, group: SequenceGroup) -> None:
        """Put a request that lost its place ahead of all others of its class."""
        self._queues[rank_of(group)].appendleft(group)

    def admit(self, group: SequenceGroup) -> None:
        """Take out the first request of its class, which is admitted."""
        rank = rank_of(group)
        taken = self._queues[rank].popleft()
        assert taken is group, "only the first of a class is admitted"
        group.is_aged = any(self._queues[:rank])
        self._num_passed[rank] = 0
        for passed in range(rank + 1, len(PRIORITIES)):
            self._num_passed[passed] = self._num_passed[passed] + 1 if self._queues[passed] else 0

    def remove(self, group: SequenceGroup) -> None:
        """Take out a request that is given up. Raises ValueError."""
        self._queues[rank_of(group)].remove(group)

    def seen_by(self, priority: Priority) -> QueueView:
        """Return the requests that a new request of a class has to wait behind."""
        return QueueView(self._queues[: PRIORITIES.index(priority) + 1])


class QueueView:
    """The queues of some classes, counted together. Implements `waiting.Counted`."""

    def __init__(self, queues: tuple[WaitingQueue, ...]) -> None:
        self._queues = queues

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def count(self, tenant: str) -> int:
        """Return how many of a tenant's requests wait."""
        return sum(queue.count(tenant) for queue in self._queues)
