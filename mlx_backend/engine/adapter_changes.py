"""Adapters that are loaded and unloaded while the model serves: each change is made between two steps.

Any thread requests a change. The device thread makes it: it plans the bytes, preempts the newest sequences where the
adapter needs their memory, and has the runner hold other factors. An adapter that is to be unloaded takes no new
requests from then on, and is unloaded when its last request has ended. A change that is refused changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from mlx_backend.api.errors import AdapterRefused, EngineDead, ModelLoadError, NoRoomForAdapter, UnknownAdapter
from mlx_backend.api.interface import AdapterConfig, AdapterInfo, GenerationRequest, ModelInfo
from mlx_backend.core.sequence import SequenceGroup
from mlx_backend.engine.loop import EngineLoop
from mlx_backend.model.adapter_files import AdapterFiles, stacked_bytes
from mlx_backend.planning.admission import Budget, Reservation
from mlx_backend.planning.footprint import WANTED_TOKENS
from mlx_backend.runners.adapter_host import AdapterHost, HasAdapters
from mlx_backend.runners.base import Runner

MOST_ADAPTERS = 256
"""Largest number of adapters that one model holds at once."""


@dataclass(slots=True, eq=False)
class Change:
    """An adapter to load, with its `files`, or to unload (None)."""

    name: str
    files: AdapterFiles | None
    done: Future[ModelInfo] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.done.set_running_or_notify_cancel()  # a change cannot be cancelled: it is made or refused


class AdapterChanges:
    """Changes of the adapters of one engine. `lock` and `inbox` are the engine's; `info` changes under the lock."""

    def __init__(
        self, runner: Runner, lock: threading.Condition, inbox: Iterable[tuple[SequenceGroup, object]]
    ) -> None:
        self._runner, self._lock, self._inbox = runner, lock, inbox
        self._pending: list[Change] = []
        self._leaving: set[str] = set()
        self._loaded: ModelInfo | None = None
        """The model as it was loaded; `_loaded_bytes` and `_loaded_limit` date from then, too."""
        self._loaded_bytes = 0
        self._loaded_limit = 0
        self._infos: tuple[AdapterInfo, ...] = ()
        self.info: ModelInfo | None = None
        """Facts of the model now; an adapter that is to be unloaded is not among them."""
        self.digests: dict[str, str] = {}
        """Digests of the adapters that are held, by name."""
        self.has_news = False
        """Whether there is a change that `apply` has not looked at yet."""

    # ---- any thread ----

    def open(self, adapter: AdapterConfig) -> Change:
        """Read an adapter's files, except its weights. Raises AdapterRefused."""
        try:
            return Change(adapter.name, self._host().open(adapter))
        except ModelLoadError as error:
            raise AdapterRefused(str(error)) from error

    def add(self, change: Change) -> None:
        """Queue a change. Under the lock. Raises AdapterRefused, UnknownAdapter."""
        self._host()
        if change.files is None:
            if self.info is None or all(adapter.name != change.name for adapter in self.info.adapters):
                raise UnknownAdapter(change.name)
            self._leaving.add(change.name)
            self._show()
        self._pending.append(change)
        self.has_news = True

    def end(self, error: EngineDead) -> None:
        """Fail the changes that were not made: no later turn makes them. Under the lock."""
        for change in self._pending:
            if not change.done.done():
                change.done.set_exception(error)
        self._pending = []

    def _host(self) -> AdapterHost:
        if not isinstance(self._runner, HasAdapters):
            raise AdapterRefused("adapters come and go with a model in one process only, and not in a recorded run")
        return self._runner.adapters

    # ---- the device thread ----

    def begin(self, info: ModelInfo) -> None:
        """Start with the facts of the loaded model."""
        budget = self._runner.budget
        self._loaded, self._infos = info, info.adapters
        self._loaded_bytes = stacked_bytes(self._runner.adapters.files) if isinstance(self._runner, HasAdapters) else 0
        self._loaded_limit = 0 if budget is None else budget.limit_bytes
        self.digests.update({adapter.name: adapter.digest for adapter in info.adapters})
        self.info = info

    def apply(self, loop: EngineLoop) -> None:
        """Make the changes that can be made now, between two steps."""
        if not self._pending:
            return
        with self._lock:
            pending = list(self._pending)
            self.has_news = False
            used = {request.adapter for request in self._requests(loop)}
        blocked = set[str]()
        for change in pending:
            if change.name in blocked or (change.files is None and change.name in used):
                blocked.add(change.name)  # changes of one adapter are made in their order
                continue
            self._make(change, loop)
            with self._lock:
                self._pending.remove(change)

    def _requests(self, loop: EngineLoop) -> list[GenerationRequest]:
        """Return all requests that have not ended. Under the lock."""
        return [*loop.requests, *(group.request for group, _ in self._inbox)]

    def _make(self, change: Change, loop: EngineLoop) -> None:
        host = self._host()
        before = host.files
        staying = tuple(adapter for adapter in before if adapter.name != change.name)
        wanted = staying if change.files is None else (*staying, change.files)
        now, then = stacked_bytes(before), stacked_bytes(wanted)
        try:
            if change.files is not None:
                _check_place(change.name, before)
            self._make_room(change, loop, now, then)
            self._infos = host.change(wanted)
        except (ModelLoadError, AdapterRefused, NoRoomForAdapter) as error:
            self._settle(change, now)
            change.done.set_exception(AdapterRefused(str(error)) if isinstance(error, ModelLoadError) else error)
            return
        self.digests.pop(change.name, None)
        if change.files is not None:
            self.digests[change.name] = change.files.digest
        change.done.set_result(self._settle(change, then))

    def _settle(self, change: Change, held_bytes: int) -> ModelInfo:
        with self._lock:
            if change.files is None:
                self._leaving.discard(change.name)
            return self._plan(held_bytes)

    def _make_room(self, change: Change, loop: EngineLoop, now: int, then: int) -> None:
        """Make the factors held `now` and those held afterwards fit: both are in memory while the new ones are built.

        Raises NoRoomForAdapter.
        """
        budget = self._runner.budget
        if budget is None:
            loop.make_room(None)
            return
        during = max(self._limit(now) - then, 0)
        with self._lock:
            if change.files is not None:
                self._check_room(change.name, budget, during, self._limit(then), self._requests(loop))
            budget.limit_bytes = during
        loop.make_room(max(during - loop.scheduler.planned_bytes, 0))
        with self._lock:
            self._plan(max(now, then))

    def _check_room(
        self, name: str, budget: Budget, during: int, then: int, requests: Iterable[GenerationRequest]
    ) -> None:
        """Check that every request still fits alone, and that a useful one fits beside the adapter."""
        assert self._loaded is not None, "the model is loaded"
        least = min(self._loaded.context_limit, WANTED_TOKENS)
        if Budget.of(replace(budget.fields(), limit_bytes=max(then, 0))).largest_alone(1) < least:
            raise NoRoomForAdapter(
                f"adapter {name} does not fit: of {budget.limit_bytes / 1e6:.1f} MB for requests it would leave "
                f"{max(then, 0) / 1e6:.1f} MB, which do not hold one of {least} tokens"
            )
        if any(budget.needed([_alone(request)]) > during for request in requests):
            raise NoRoomForAdapter(
                f"adapter {name} does not fit beside a request that is running or waiting; load it when that has ended"
            )

    def _limit(self, held_bytes: int) -> int:
        """Return the bytes for requests beside adapters of `held_bytes`."""
        return self._loaded_limit + self._loaded_bytes - held_bytes

    def _plan(self, held_bytes: int) -> ModelInfo:
        """Plan with adapters of `held_bytes`, for requests that arrive from now on. Under the lock."""
        assert self._loaded is not None, "the model is loaded"
        loaded, budget, memory = self._loaded, self._runner.budget, self._loaded.memory
        longest, more = loaded.context_limit, held_bytes - self._loaded_bytes
        if budget is not None:
            budget.limit_bytes = max(self._limit(held_bytes), 0)
            longest = min(longest, budget.largest_alone(1))
        self.info = replace(
            loaded,
            context_limit=longest,
            context_limited_by="memory" if longest < loaded.context_limit else loaded.context_limited_by,
            weights_bytes=loaded.weights_bytes + more,
            memory=None if memory is None else replace(memory, weights_bytes=memory.weights_bytes + more),
        )
        return self._show()

    def _show(self) -> ModelInfo:
        assert self.info is not None, "the model is loaded"
        shown = tuple(adapter for adapter in self._infos if adapter.name not in self._leaving)
        self.info = replace(self.info, adapters=shown)
        return self.info


def _check_place(name: str, held: Iterable[AdapterFiles]) -> None:
    names = [adapter.name for adapter in held]
    if name in names:
        raise AdapterRefused(f"adapter {name} is loaded already; unload it first")
    if len(names) >= MOST_ADAPTERS:
        raise AdapterRefused(f"{len(names)} adapters are loaded, the most beside one model; unload one first")


def _alone(request: GenerationRequest) -> Reservation:
    num_prompt = len(request.prompt_ids)
    return Reservation(request.n, num_prompt, num_prompt + request.max_tokens)
