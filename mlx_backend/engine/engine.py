"""DeviceEngine: owns the device thread, its inbox and its death. The thread's repeated work is in loop.py.

Other threads touch the inbox, under the lock, and read counters. Everything else belongs to the device thread: its
loop, the runner, every sequence.
"""

from __future__ import annotations

import collections.abc
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace

from mlx_backend.api.errors import (
    EngineClosed,
    EngineDead,
    EngineNotReady,
    ModelLoadError,
    QueueFull,
)
from mlx_backend.api.interface import (
    PRIORITIES,
    AdapterConfig,
    EngineConfig,
    EngineHealth,
    EngineStats,
    GenerationRequest,
    LoadProgress,
    ModelInfo,
    RankStats,
)
from mlx_backend.core.sequence import SequenceGroup, TokenSequence, build_groups
from mlx_backend.drafting.speculation import Speculation
from mlx_backend.engine.adapter_changes import AdapterChanges, Change
from mlx_backend.engine.checks import check_number, check_request
from mlx_backend.engine.class_queue import ClassQueue, rank_of
from mlx_backend.engine.counters import Counters
from mlx_backend.engine.loop import EngineLoop
from mlx_backend.engine.stream import EventStream
from mlx_backend.engine.waiting import has_room
from mlx_backend.prefix_cache.build import build_prefix_cache
from mlx_backend.prefix_cache.no_cache import NoPrefixCache
from mlx_backend.runners.base import Runner

logger = logging.getLogger("pippin.engine")

_DISK_WAIT_S = 0.5
"""Interval at which the engine checks whether to keep waiting while all work waits for the disk."""

_LEAVE_S = 1.0
"""Time that an abandoned device thread has to end by itself."""


class _ClosedWhileLoading(Exception):
    """Raised on the device thread to stop loading when the engine closes; not a failure."""


class DeviceEngine:
    """Implements `interface.Engine` over a Runner."""

    def __init__(self, config: EngineConfig, runner: Runner) -> None:
        self._config = config
        self._runner = runner
        self._changed = threading.Condition()
        self._inbox: deque[tuple[SequenceGroup, EventStream]] = deque()
        self._adapters = AdapterChanges(runner, self._changed, self._inbox)
        self._closed: deque[tuple[TokenSequence, str]] = deque()
        """Sequences that are read no more: finished by their readers, or aborted."""
        self._closing = False
        self._is_abandoned = self._has_ended = False
        self._failure: BaseException | None = None
        self._callbacks: list[Callable[[], None]] = []
        self._read_ranks: Callable[[], tuple[RankStats, ...]] | None = None
        self._load = LoadProgress()
        self._load_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._busy = False
        self._counters = Counters()
        self._loop: EngineLoop | None = None
        """The loop; set when the model loads."""

    # ---- any thread ----

    def start(self) -> None:
        self._thread.start()

    def wait_loaded(self) -> None:
        self._load_ended.wait()

    @property
    def model_info(self) -> ModelInfo | None:
        return self._adapters.info

    @property
    def failure(self) -> BaseException | None:
        return self._failure

    def on_death(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def submit(self, requests: collections.abc.Sequence[GenerationRequest]) -> EventStream:
        info = self.model_info
        if self._failure is not None or self._closing:
            raise self._dead()
        if info is None:
            raise EngineNotReady("the model is still loading")
        check_number(requests, self._config.scheduler.max_waiting)
        for request in requests:
            check_request(request, info, self._runner.budget)
        groups = build_groups(requests)
        stream = EventStream(groups, self._close_sequences)
        with self._changed:
            if self._failure is not None or self._closing:
                raise self._dead()
            if info is not self.model_info:  # an adapter was loaded or unloaded meanwhile
                for request in requests:
                    check_request(request, self.model_info or info, self._runner.budget)
            if not self._has_room(groups):
                num_waiting = self.stats().num_waiting
                raise QueueFull(num_waiting, self._counters.retry_after_s(num_waiting, time.monotonic()))
            self._inbox.extend((group, stream) for group in groups)
            self._changed.notify()
        return stream

    def load_adapter(self, adapter: AdapterConfig) -> Future[ModelInfo]:
        return self._change_adapters(self._adapters.open(adapter))

    def unload_adapter(self, name: str) -> Future[ModelInfo]:
        return self._change_adapters(Change(name, None))

    def _change_adapters(self, change: Change) -> Future[ModelInfo]:
        with self._changed:
            if self._failure is not None or self._closing:
                raise self._dead()
            if self.model_info is None:
                raise EngineNotReady("the model is still loading")
            self._adapters.add(change)
            self._changed.notify()
        return change.done

    def _has_room(self, groups: collections.abc.Sequence[SequenceGroup]) -> bool:
        """Return whether requests may wait behind those of their class and of more urgent ones. Under the lock."""
        priority = groups[0].request.priority
        waiting = (self._loop.scheduler.waiting if self._loop is not None else ClassQueue()).seen_by(priority)
        arrived = [group for group, _ in self._inbox if rank_of(group) <= PRIORITIES.index(priority)]
        return has_room(waiting, arrived, groups, self._config.scheduler.max_waiting)

    def stats(self) -> EngineStats:
        loop = self._loop
        found = self._counters.snapshot(None if loop is None else loop.scheduler, len(self._inbox))
        return found if self._read_ranks is None else replace(found, ranks=self._read_ranks())

    def show_ranks(self, read: Callable[[], tuple[RankStats, ...]]) -> None:
        """Have `stats` report what `read` returns about the ranks; it is called on any thread."""
        self._read_ranks = read

    def health(self) -> EngineHealth:
        if self._failure is not None:
            return EngineHealth(status="dead", detail=str(self._failure) or type(self._failure).__name__)
        if self.model_info is None:
            return EngineHealth(status="loading", detail=_told(self._load), load=self._load)
        waited_s = time.monotonic() - self._counters.progress_at
        if self._busy and waited_s > self._config.health.stall_s:
            return EngineHealth(status="stalled", detail=f"work waits, and no step finished for {waited_s:.0f} s")
        return EngineHealth(status="ok", load=self._load)

    def close(self, timeout_s: float = 10.0) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._runner.interrupt()
            if not self._is_abandoned:
                self._thread.join(timeout_s)

    def abandon(self, error: EngineDead) -> None:
        """Die of an error that the device thread may miss, as a computation may block forever. Any other thread."""
        with self._changed:
            if self._failure is not None or self._closing:
                return
            self._failure, self._closing, self._is_abandoned = error, True, True
            self._changed.notify()
        logger.critical("the engine dies: %s", error)
        self._thread.join(_LEAVE_S)  # it may be free to end by itself
        self._fail_everything()

    def _close_sequences(self, sequences: Iterable[TokenSequence], how: str) -> None:
        with self._changed:
            self._closed.extend((sequence, how) for sequence in sequences)
            self._changed.notify()

    def _dead(self) -> EngineDead:
        if self._failure is None:
            return EngineClosed("the model was closed before the end: the server is shutting down, or has unloaded it")
        return EngineDead(f"the engine has died: {self._failure}")

    # ---- the device thread ----

    def _run(self) -> None:
        try:
            began = time.monotonic()
            info = self._runner.load(self._report_load)
            loop = self._prepare(replace(info, load_s=time.monotonic() - began))
            self._load_ended.set()
            while self._take_work(loop):
                loop.step()
        except _ClosedWhileLoading:
            logger.info("loading was given up")
        except BaseException as error:  # noqa: BLE001 - whatever ends this thread ends the engine, and is reported to all
            self._die(error)
        finally:
            self._fail_everything()
            self._runner.close()

    def _prepare(self, info: ModelInfo) -> EngineLoop:
        """Build everything that depends on the loaded model."""
        budget = self._runner.budget
        free_bytes = None if budget is None else budget.limit_bytes
        prefixes, report = build_prefix_cache(
            self._config,
            self._runner.blocks,
            free_bytes,
            self._wake,
            self._adapters.digests,
        )
        max_rows = self._config.scheduler.max_num_seqs if info.is_batched else 1
        self._loop = loop = EngineLoop(
            self._config.scheduler,
            self._runner,
            self._counters,
            max_rows=max_rows,
            prefixes=prefixes or NoPrefixCache(),
            pads_chunks=info.pads_chunks,
            speculation=Speculation(
                self._config.speculation, info.max_drafts, info.draft_model.context_limit if info.draft_model else 0
            ),
        )
        self._adapters.begin(replace(info, prefix_cache=report))
        return loop

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _report_load(self, progress: LoadProgress) -> None:
        self._load = progress
        if self._closing:
            raise _ClosedWhileLoading

    def _take_work(self, loop: EngineLoop) -> bool:
        """Empty the inbox, waiting until there is work; False when the engine is to close."""
        self._adapters.apply(loop)
        with self._changed:
            is_idle = self._is_idle(loop)
        if is_idle:
            self._busy = False
            loop.rest()
        with self._changed:
            while self._is_idle(loop):
                if not self._changed.wait(_DISK_WAIT_S if loop.waits_for_disk else None):
                    break  # the disk is slow: check whether computing is better
            arrived, closed = list(self._inbox), list(self._closed)
            self._inbox.clear()
            self._closed.clear()
        if not self._busy:
            self._counters.progress_at = time.monotonic()
            self._busy = True
        for group, stream in arrived:
            loop.arrive(group, stream)
        for sequence, how in closed:
            loop.close_sequence(sequence, how)
        return not self._closing

    def _is_idle(self, loop: EngineLoop) -> bool:
        """Return whether there is no work and nothing has arrived. Under the lock."""
        has_news = self._inbox or self._closed or self._closing or self._adapters.has_news
        return not (has_news or loop.has_work)

    def _die(self, error: BaseException) -> None:
        with self._changed:
            if self._is_abandoned:
                return  # the cause of death is known more precisely
            self._failure = error
        if not isinstance(error, ModelLoadError):
            logger.critical("the device thread died: %s", error, exc_info=error)

    def _fail_everything(self) -> None:
        """Fail everything that waits for this thread, as its last act. Done once, by whichever thread comes first."""
        with self._changed:
            if self._has_ended:
                return
            self._closing = self._has_ended = True
            arrived = [stream for _, stream in self._inbox]
            self._inbox.clear()
            self._adapters.end(self._dead())
        self._load_ended.set()
        if self._loop is not None:
            self._loop.end(self._dead(), arrived)
        if self._failure is not None:
            for callback in self._callbacks:
                callback()


def _told(load: LoadProgress) -> str:
    if not load.num_to_warm:
        return "the model is loading"
    return f"the device is warming up: {load.num_warmed} of {load.num_to_warm} shapes"
