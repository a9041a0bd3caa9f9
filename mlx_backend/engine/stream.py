"""The crossing from the device thread to an event loop: one EventStream per submission.

The device thread hands over events with `call_soon_threadsafe`, once per turn and loop; everything else here runs on
the loop that owns the stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from mlx_backend.api.interface import DraftedTokens, PrefillProgress, StreamEvent
from mlx_backend.core.sequence import SequenceGroup, TokenSequence

_MOST_EVENTS = 64
"""Events handed over at once: a slow reader finds a backlog of thousands, and encoding takes time."""


class EventStream:
    """Stream of the tokens of some prompts' sequences. Implements `interface.TokenStream`."""

    def __init__(
        self, groups: tuple[SequenceGroup, ...], close: Callable[[Iterable[TokenSequence], str], None]
    ) -> None:
        """Build a stream. `close` ends sequences that are read no more, as "finished" or "aborted"."""
        self.loop = asyncio.get_running_loop()
        self._groups = groups
        self.sequences = [sequence for group in groups for sequence in group.sequences]
        self._close = close
        self._open = {sequence.index: sequence for sequence in self.sequences}
        self._pending: deque[StreamEvent] = deque()
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> AsyncIterator[tuple[StreamEvent, ...]]:
        return self

    async def __anext__(self) -> tuple[StreamEvent, ...]:
        if self._pending:  # a backlog: others get the loop between its parts
            await asyncio.sleep(0)
        while not self._pending:
            if self._error is not None:
                raise self._error
            if not self._open:
                raise StopAsyncIteration
            self._waiter = self.loop.create_future()
            await self._waiter
        events = tuple(self._pending.popleft() for _ in range(min(_MOST_EVENTS, len(self._pending))))
        for event in events:
            if event.finish_reason is not None:
                self._open.pop(event.index, None)
        return events

    def abort(self, index: int) -> None:
        self._leave(index, "aborted")

    def finish(self, index: int) -> None:
        self._leave(index, "finished")

    def _leave(self, index: int, how: str) -> None:
        sequence = self._open.pop(index, None)
        if sequence is None:
            return
        self._pending = deque(event for event in self._pending if event.index != index)
        self._close((sequence,), how)
        self._wake()

    async def aclose(self) -> None:
        if self._open:
            self._close(tuple(self._open.values()), "aborted")
        self._open.clear()
        self._pending.clear()
        self._wake()

    @property
    def progress(self) -> PrefillProgress:
        return PrefillProgress(
            num_computed_tokens=sum(p.num_prompt_tokens - max(p.num_remaining_tokens, 0) for p in self._groups),
            num_prompt_tokens=sum(p.num_prompt_tokens for p in self._groups),
        )

    @property
    def num_cached_tokens(self) -> int:
        return sum(group.num_cached_tokens for group in self._groups)

    @property
    def drafted(self) -> DraftedTokens:
        return sum((sequence.drafted for sequence in self.sequences), DraftedTokens())

    @property
    def queue_time_s(self) -> float | None:
        return self._groups[0].queue_time_s

    def deliver(self, item: StreamEvent | BaseException) -> None:
        """Take one event, or the error that ends the stream. Called on the loop."""
        if not isinstance(item, BaseException):
            if item.index in self._open:
                self._pending.append(item)
        elif self._open and self._error is None:
            self._error = item
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Outbox:
    """Events of a step for the streams, sent once per event loop. Owned by the device thread."""

    def __init__(self) -> None:
        self._items: dict[asyncio.AbstractEventLoop, list[tuple[EventStream, Any]]] = {}

    def put(self, stream: EventStream, item: StreamEvent | BaseException) -> None:
        self._items.setdefault(stream.loop, []).append((stream, item))

    def send(self) -> None:
        """Hand everything over. A loop that has closed has no readers left."""
        for loop, items in self._items.items():
            try:
                loop.call_soon_threadsafe(_deliver, items)
            except RuntimeError:
                continue
        self._items.clear()


def _deliver(items: list[tuple[EventStream, Any]]) -> None:
    for stream, item in items:
        stream.deliver(item)
