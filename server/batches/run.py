"""One run over the lines of a batch: some at a time, in the order of their prefixes, each answered once.

Independent of HTTP: the caller passes what sends a line and what keeps an answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Protocol

from server.batches.answers import Answer, Written, write_answer, write_broken
from server.batches.disk import on_disk
from server.batches.lines import BrokenLine, Line, RequestLine
from server.batches.order import windows
from server.batches.pacing import Backoff, Decision, decide
from server.batches.progress import Progress

Send = Callable[[str, bytes], Awaitable[Answer]]
"""Sends a body to a path. Raises Unreachable."""


class Unreachable(Exception):
    """The server gave no answer, but may later."""


class Stopped(Exception):
    """The run ended before its last line; the message is one line."""


class Sink(Protocol):
    """Storage of answers. Its methods are called on one thread at a time."""

    def has(self, line: Line) -> bool:
        """Return whether a line is answered."""

    def put(self, line: Line, written: Written) -> None:
        """Keep an answer, whole or not at all."""

    def sync(self) -> None:
        """Sync all answers to disk."""


class Run:
    """One run. `run` raises Stopped; the answers so far are kept."""

    def __init__(
        self,
        lines: Iterator[Line],
        sink: Sink,
        send: Send,
        progress: Progress,
        *,
        num_in_flight: int,
        give_up_s: float | None = None,
        place: Callable[[], AbstractAsyncContextManager[object]] = nullcontext,
        clock: Callable[[], float] = time.monotonic,
        sync_s: float = 1.0,
    ) -> None:
        """`give_up_s`: the run ends after this time without an answer; None: never.

        `place`: held while the server has a line, for a limit that several runs share.
        """
        self.progress = progress
        self._sink, self._send = sink, send
        self._num_in_flight, self._give_up_s, self._place = num_in_flight, give_up_s, place
        self._clock, self._sync_s = clock, sync_s
        self._windows = windows(line for line in lines if not sink.has(line))
        self._window: deque[Line] = deque()
        self._reading, self._writing = asyncio.Lock(), asyncio.Lock()
        self._backoff = Backoff()
        self._not_before = self._answered_at = self._synced_at = clock()

    async def run(self) -> None:
        """Answer every line without an answer. Raises Stopped, and what the sink raises."""
        self.progress.begin(self._clock())
        workers = [asyncio.create_task(self._work()) for _ in range(self._num_in_flight)]
        try:
            done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            for worker in done:
                worker.result()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await on_disk(self._sink.sync)

    async def _next(self) -> Line | None:
        """Return the next line, or None at the end."""
        async with self._reading:
            if not self._window:
                self._window = deque(await on_disk(partial(next, self._windows, [])))
            return self._window.popleft() if self._window else None

    async def _work(self) -> None:
        while (line := await self._next()) is not None:
            if isinstance(line, BrokenLine):
                await self._put(line, write_broken(line))
            else:
                answer = await self._ask(line)
                await self._put(line, await on_disk(partial(write_answer, line, answer)))

    async def _ask(self, line: RequestLine) -> Answer:
        """Return the line's answer, retrying as needed. Raises Stopped."""
        num_attempts = 1
        while True:
            await self._wait()
            answer: Answer | None = None
            try:
                async with self._place():
                    answer = await self._send(line.url, line.body)
            except Unreachable as error:
                decision, why = Decision.WAIT, str(error)
            else:
                decision = decide(answer.status, num_attempts)
                if decision is Decision.WRITE:
                    self._backoff.reset()
                    self._answered_at = self._clock()
                    return answer
                why = f"status {answer.status}: {_message(answer)}"
            if decision is Decision.STOP:
                raise Stopped(f"the server refuses the requests ({why})")
            num_attempts += decision is Decision.AGAIN
            self._hold(answer, why)

    def _hold(self, answer: Answer | None, why: str) -> None:
        """Make all lines wait. Raises Stopped after too long without an answer."""
        now = self._clock()
        self.progress.waits_for = why
        if self._give_up_s is not None and now - self._answered_at > self._give_up_s:
            raise Stopped(f"the server has answered no line for {self._give_up_s:g} s ({why})")
        if now >= self._not_before:  # lines in flight meanwhile do not extend the wait
            self._not_before = now + self._backoff.wait_s(answer)

    async def _wait(self) -> None:
        while (left_s := self._not_before - self._clock()) > 0:
            await asyncio.sleep(left_s)

    def _keep(self, line: Line, written: Written) -> None:
        """Keep an answer and count it. Runs on a thread, so both happen even if the run is cancelled."""
        self._sink.put(line, written)
        self.progress.add(self._clock(), is_success=written.is_success, usage=written.usage)

    async def _put(self, line: Line, written: Written) -> None:
        async with self._writing:
            await on_disk(partial(self._keep, line, written))
            if self._clock() - self._synced_at > self._sync_s:
                self._synced_at = self._clock()
                await on_disk(self._sink.sync)


def _message(answer: Answer) -> str:
    try:
        return str(json.loads(answer.body)["error"]["message"])[:300]
    except (ValueError, LookupError, TypeError, RecursionError):
        return answer.body[:100].decode("utf-8", "replace")
