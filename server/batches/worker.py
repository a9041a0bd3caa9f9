"""Worker that runs the batches of a store, some at a time, and resumes those that an earlier server left.

Independent of HTTP: the caller passes how the requests of an owner are sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from server.batches.answers import AnswerFile, AnswersError, DiskFull, write_error
from server.batches.disk import on_disk
from server.batches.lines import LineLimits, TooManyLines, count_lines, read_lines
from server.batches.progress import Progress
from server.batches.records import Batch, Status
from server.batches.room import StoreFull
from server.batches.run import Run, Send, Stopped
from server.batches.sinks import AnswerSink
from server.batches.store import Store

logger = logging.getLogger("pippin.batches")

MAX_RUNNING = 4
"""Most concurrent batches; their requests share the places."""
_TIDY_S = 30.0
_RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Limits for the requests of all batches."""

    num_in_flight: int
    max_lines: int
    max_line_bytes: int


class _Ended(Exception):
    """The batch ends before its last line."""

    def __init__(self, status: Status, code: str | None = None, message: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class BatchWorker:
    """Batches of one store. Runs on the event loop, except for disk access."""

    def __init__(
        self, store: Store, limits: Callable[[], WorkerLimits], clock: Callable[[], float] = time.time
    ) -> None:
        self.store = store
        self._limits, self._clock = limits, clock
        self._is_changed = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._cancels: dict[str, asyncio.Event] = {}
        self._progress: dict[str, Progress] = {}
        self._places = asyncio.Semaphore(limits().num_in_flight)

    def wake(self) -> None:
        """Look for new batches, and for batches to cancel."""
        self._is_changed.set()

    def counts_of(self, batch: Batch) -> tuple[int, int, int]:
        """Return the number of lines of a batch, of successes, and of failures."""
        found = self._progress.get(batch.id)
        if found is None:
            return batch.num_lines, batch.num_done - batch.num_failed, batch.num_failed
        return found.num_lines, found.num_done - found.num_failed, found.num_failed

    async def run(self, sender_of: Callable[[str], Send]) -> None:
        """Run batches until cancelled; unanswered lines are answered after the next start.

        `sender_of`: returns how the requests of an owner are sent.
        """
        tidying = asyncio.create_task(self._tidy())
        try:
            while True:
                self._is_changed.clear()
                self._begin(sender_of)
                await self._is_changed.wait()
        finally:
            left = [tidying, *self._running.values()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            self.store.close()

    def _begin(self, sender_of: Callable[[str], Send]) -> None:
        """Start batches up to the limit: first the oldest of the owner with the fewest running."""
        for batch in (batch for batch in self.store.open_batches() if batch.status == "cancelling"):
            if batch.id in self._cancels:
                self._cancels[batch.id].set()
        while len(self._running) < MAX_RUNNING:
            waiting = [batch for batch in self.store.open_batches() if batch.id not in self._running]
            if not waiting:
                return
            owners = Counter(batch.owner for batch in self.store.open_batches() if batch.id in self._running)
            batch = min(waiting, key=lambda each: (owners[each.owner], each.created_at))
            self._cancels[batch.id] = asyncio.Event()
            task = asyncio.create_task(self._process(batch, sender_of(batch.owner)))
            self._running[batch.id] = task
            task.add_done_callback(lambda task, id=batch.id: self._forget(id, task))  # type: ignore[misc]

    def _forget(self, id: str, task: asyncio.Task[None]) -> None:
        for known in (self._running, self._cancels, self._progress):
            known.pop(id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s is given up until the next start", id, exc_info=error)
            return
        self.wake()

    async def _tidy(self) -> None:
        while True:
            await on_disk(self.store.tidy)
            await asyncio.sleep(_TIDY_S)

    # --- one batch

    async def _process(self, batch: Batch, send: Send) -> None:
        if batch.ending is None:
            logger.info("%s begins, or goes on", batch.id)
            status: Status = "completed"
            try:
                await self._answer(batch, send)
            except _Ended as end:
                status = end.status
                if end.code is not None:
                    batch.failures = [{"code": end.code, "message": str(end), "line": None, "param": None}]
            await self._close(batch, status)
        await self._take_in(batch)
        logger.info("%s is %s: %d of %d lines", batch.id, batch.status, batch.num_done, batch.num_lines)

    async def _answer(self, batch: Batch, send: Send) -> None:
        """Answer the unanswered lines. Raises _Ended."""
        with contextlib.ExitStack() as opened:
            try:
                stream, sink = await on_disk(partial(self._open, batch, opened))
                await self._run(batch, send, stream, sink)
            except TooManyLines as error:
                raise _Ended("failed", "too_many_lines", _sentence(error)) from None
            except StoreFull as error:
                raise _Ended("failed", "storage_full", str(error)) from None
            except DiskFull as error:
                raise _Ended("failed", "disk_full", _sentence(error)) from None
            except AnswersError as error:
                logger.error("%s: %s", batch.id, error)
                raise _Ended("failed", "internal_error", "The answers of the batch cannot be read.") from None
            except Stopped as error:
                raise _Ended("failed", "key_revoked", _sentence(error)) from None
            except OSError as error:
                logger.error("%s: %s", batch.id, error)
                raise _Ended("failed", "storage_error", "The files of the batch cannot be read or written.") from None
            except _Ended:
                raise
            except Exception:
                logger.exception("%s: unexpected error", batch.id)
                raise _Ended("failed", "internal_error", "The server had an error while running the batch.") from None

    def _open(self, batch: Batch, opened: contextlib.ExitStack) -> tuple[BinaryIO, AnswerSink]:
        """Open the input and the answers, and count lines. Runs on a thread. Raises errors of opening and reading."""
        stream = opened.enter_context(self.store.path_of(batch.input_id).open("rb"))
        limits = self._limits()
        if not batch.num_lines:
            batch.num_lines = count_lines(stream)
            stream.seek(0)
        if not batch.num_lines:
            raise _Ended("failed", "empty_file", "The input has no lines.")
        if batch.num_lines > limits.max_lines:
            raise TooManyLines(limits.max_lines)

        def answers(path: Path) -> AnswerFile:
            file = AnswerFile(path, check_room=grow)
            opened.callback(file.close)
            return file

        num_held = 0
        opened.callback(lambda: self.store.room.give_back(batch.owner, num_held))

        def grow(num_bytes: int) -> None:
            nonlocal num_held
            self.store.room.take(batch.owner, num_bytes)
            num_held += num_bytes

        output, errors = map(answers, self.store.answers_of(batch))
        sink = AnswerSink(output, errors)
        done = sink.recover()
        num_held = sink.num_bytes
        self.store.room.hold(batch.owner, num_held)
        batch.num_done, batch.num_failed = done.num_done, done.num_failed
        return stream, sink

    async def _run(self, batch: Batch, send: Send, stream: BinaryIO, sink: AnswerSink) -> None:
        limits = self._limits()
        lines = read_lines(stream, LineLimits(limits.max_line_bytes, limits.max_lines), endpoint=batch.endpoint)
        progress = self._progress[batch.id] = Progress(batch.num_lines, batch.num_done, batch.num_failed)
        if batch.status == "validating":
            batch.enter("in_progress", self._clock())
            await on_disk(partial(self.store.save, batch))
        run = Run(lines, sink, send, progress, num_in_flight=limits.num_in_flight, place=lambda: self._places)
        try:
            await self._until_it_ends(batch, run.run())
        except _Ended as end:
            if end.status == "expired":
                await on_disk(partial(self._expire, batch, sink, progress))
            raise
        finally:
            batch.num_done, batch.num_failed = progress.num_done, progress.num_failed

    async def _until_it_ends(self, batch: Batch, work: Coroutine[Any, Any, None]) -> None:
        """Wait for the work, the end of the completion window, or a cancellation by a client. Raises _Ended."""
        working = asyncio.create_task(work)
        cancelling = asyncio.create_task(self._cancels[batch.id].wait())
        if batch.status == "cancelling":
            self._cancels[batch.id].set()
        try:
            left_s = max(0.0, batch.expires_at - self._clock())
            done, _ = await asyncio.wait({working, cancelling}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if working in done:
                working.result()
            else:
                raise _Ended("cancelled" if cancelling in done else "expired")
        finally:
            for task in (working, cancelling):
                task.cancel()
            await asyncio.gather(working, cancelling, return_exceptions=True)

    def _expire(self, batch: Batch, sink: AnswerSink, progress: Progress) -> None:
        """Write an error for each unanswered line. Runs on a thread."""
        message = "This request was not answered before the completion window ended."
        limits = self._limits()
        limits_of_lines = LineLimits(limits.max_line_bytes, limits.max_lines)
        with self.store.path_of(batch.input_id).open("rb") as stream:
            for line in read_lines(stream, limits_of_lines, endpoint=batch.endpoint):
                if not sink.has(line):
                    sink.put(line, write_error(line, "batch_expired", message))
                    progress.add(time.monotonic(), is_success=False)
        sink.sync()

    async def _close(self, batch: Batch, status: Status) -> None:
        """Record that no more lines are answered, so that the next start does not answer them again."""
        batch.ending = status
        if status in ("completed", "expired"):
            batch.enter("finalizing", self._clock())
        while not await on_disk(partial(self.store.save, batch)):
            await asyncio.sleep(_RETRY_S)

    async def _take_in(self, batch: Batch) -> None:
        """Turn the answers into files, and end the batch."""
        assert batch.ending is not None
        while True:
            try:
                await on_disk(partial(self._adopt, batch))
                break
            except OSError as error:
                logger.error("the answers of %s cannot be kept yet: %s", batch.id, error.strerror or error)
                await asyncio.sleep(_RETRY_S)
        batch.enter(batch.ending, self._clock())
        await on_disk(partial(self.store.save, batch))

    def _adopt(self, batch: Batch) -> None:
        output, errors = self.store.answers_of(batch)
        batch.has_output = self.store.adopt(output, batch.owner, batch.output_id, f"{batch.id}_output.jsonl")
        batch.has_errors = self.store.adopt(errors, batch.owner, batch.error_id, f"{batch.id}_error.jsonl")


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."
