"""Residency of models in memory: loaded on request, unloaded when idle or when another needs the memory.

One model is loaded or unloaded at a time. Requests hold their model by a lease; a model with leases is not unloaded,
and one that is leaving grants no new leases: those requests wait for its reload. Runs on the event loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from mlx_backend.api.errors import EngineDead, EngineError, EngineNotReady, ModelLoadError
from mlx_backend.api.interface import Footprint, MemoryShare
from server.service.share import choose_share, too_large

if TYPE_CHECKING:
    from server.service.registry import ServedModel

logger = logging.getLogger("pippin.models")

LOAD_WAIT_S = 600.0
RETRY_S = 30.0
"""Time after which a request reloads a model that failed or died."""
_LEAST_PAUSE_S = 0.02
"""Minimum pause between checks for idle models."""


class Watcher(Protocol):
    """Observer of loads and unloads. Called on the event loop; must not block."""

    def loading(self, model: ServedModel) -> None: ...

    def unloaded(self, model: ServedModel) -> None: ...


class Lease:
    """Hold on a model until released, with other resources that a request holds of it."""

    def __init__(self, model: ServedModel, release: Callable[[ServedModel], None]) -> None:
        self.model = model
        self._release: Callable[[ServedModel], None] | None = release
        self._held: list[Callable[[], None]] = []

    def on_release(self, let_go: Callable[[], None]) -> None:
        """Call `let_go` on release."""
        self._held.append(let_go)

    def release(self) -> None:
        """Idempotent."""
        release, self._release = self._release, None
        if release is None:
            return
        for let_go in self._held:
            let_go()
        release(self.model)


class _Load:
    """One load that requests wait for. `is_handed`: all of them have their leases."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None]
        self.num_waiting = 0
        self.is_handed = False


class Residency:
    """Loads and unloads the models of one server."""

    def __init__(
        self, models: Sequence[ServedModel], watcher: Watcher | None = None, *, load_wait_s: float = LOAD_WAIT_S
    ) -> None:
        self._models = tuple(models)
        self._watcher = watcher
        self._load_wait_s = load_wait_s
        self._lock = asyncio.Lock()
        self._loads: dict[str, _Load] = {}
        self._idle: dict[str, asyncio.Event] = {}
        self._footprints: dict[str, Footprint] = {}
        self._limit_bytes: int | None = None
        self._failed_at: dict[str, float] = {}
        self._watched: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    # ---- for requests ----

    async def acquire(self, model: ServedModel) -> Lease:
        """Return a lease of the model, loaded first if needed. Raises EngineError."""
        load = self._loads.get(model.id)
        if model.is_present and not model.is_leaving and load is None:
            model.num_users += 1
            return Lease(model, self._release)
        if load is None:
            self._check_failed(model)
            load = self._begin(model)
        load.num_waiting += 1
        try:
            await asyncio.wait_for(asyncio.shield(load.task), self._load_wait_s)
        except BaseException as error:
            if load.is_handed:
                self._release(model)
            else:
                load.num_waiting -= 1
            if isinstance(error, TimeoutError):
                raise EngineNotReady(f"the model '{model.id}' is still loading") from None
            if load.task.cancelled():
                raise EngineDead("the server is shutting down") from None
            raise
        return Lease(model, self._release)

    def _release(self, model: ServedModel) -> None:
        model.num_users -= 1
        model.used_at = time.monotonic()
        if model.num_users == 0 and model.id in self._idle:
            self._idle[model.id].set()

    def _check_failed(self, model: ServedModel) -> None:
        """Raise the recent failure again instead of retrying at every request."""
        error, failed_at = model.last_failure, self._failed_at.get(model.id)
        if error is None or failed_at is None or time.monotonic() - failed_at > RETRY_S:
            return
        kind = ModelLoadError if isinstance(error, ModelLoadError) else EngineDead
        raise kind(f"the model '{model.id}' cannot be served: {error}")

    # ---- for the server ----

    def start(self) -> None:
        """Start loading the required models. Needs a running event loop if there are several models."""
        if len(self._models) == 1:
            for model in self._models:
                self._start_alone(model)
            return
        for model in self._models:
            if model.is_required:
                self._spawn(self._load(model))
        if any(model.keep_alive_s is not None for model in self._models):
            self._spawn(self._sweep())

    def _start_alone(self, model: ServedModel) -> None:
        if model.is_required:
            self._begin_life(model, None)
        if model.keep_alive_s is not None:
            self._spawn(self._sweep())

    async def close(self) -> None:
        """Stop all loading and unloading."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def load(self, model: ServedModel) -> None:
        """Load the model and wait for it, despite a recent failure. Raises EngineError."""
        self._failed_at.pop(model.id, None)
        lease = await self.acquire(model)
        try:
            await model.until_settled()
            model.ready()
        finally:
            lease.release()

    async def unload(self, model: ServedModel, *, by_force: bool = False) -> None:
        """Unload the model when its requests are done; by force, they fail. Continues without the caller."""
        if by_force and model.is_present:
            model.is_leaving = True
            await asyncio.to_thread(model.close)
        await asyncio.shield(self._spawn(self._unload_in_turn(model)))

    def is_coming(self, model: ServedModel) -> bool:
        """Return whether the model holds memory or is being loaded."""
        return model.is_present or model.id in self._loads

    def forget_footprint(self, model: ServedModel) -> None:
        """Measure the model again before its next load, because its adapters changed."""
        self._footprints.pop(model.id, None)

    def leave(self, model: ServedModel) -> None:
        """Start unloading the model if no request holds it and it is not pinned."""
        if model.is_present and not model.is_pinned and model.num_users == 0:
            self._spawn(self._unload_in_turn(model))

    # ---- loading ----

    def _begin(self, model: ServedModel) -> _Load:
        load = self._loads[model.id] = _Load()
        load.task = self._spawn(self._load(model, load))
        return load

    async def _load(self, model: ServedModel, load: _Load | None = None) -> None:
        try:
            async with self._lock:
                await self._load_now(model)
                if load is not None:
                    model.num_users += load.num_waiting
                    load.is_handed = True
        except EngineError as error:
            logger.error("%s", error)
            self._failed_at[model.id] = time.monotonic()
            if load is not None:
                raise
        finally:
            if load is not None:
                del self._loads[model.id]

    async def _load_now(self, model: ServedModel) -> None:
        if not model.can_be_loaded:
            raise EngineDead(f"the model '{model.id}' cannot be loaded again")
        try:
            share = await self._make_room(model)
        except EngineError as error:
            model.fail(error)
            raise
        self._begin_life(model, share)
        await model.until_settled()
        if model.state == "loaded":
            return
        failure = model.failure or EngineNotReady("it was unloaded while loading")
        if not model.is_required:  # a required model's failure ends the server
            await asyncio.to_thread(model.unload)
            model.fail(failure)
        kind = ModelLoadError if isinstance(failure, ModelLoadError) else EngineDead
        raise kind(f"the model '{model.id}' cannot be loaded: {failure}") from failure

    def _begin_life(self, model: ServedModel, share: MemoryShare | None) -> None:
        if model.id not in self._watched and not model.is_required:
            self._watched.add(model.id)
            loop = asyncio.get_running_loop()
            model.on_death(partial(self._note_death, model, loop))
        model.start(share)
        if self._watcher is not None:
            self._watcher.loading(model)

    def _note_death(self, model: ServedModel, loop: asyncio.AbstractEventLoop) -> None:
        """Note a model's death; called on one of its threads."""
        with contextlib.suppress(RuntimeError):  # the loop is already closed
            loop.call_soon_threadsafe(lambda: self._spawn(self._bury(model)))

    async def _bury(self, model: ServedModel) -> None:
        """Free the memory of a model that died; the next request reloads it."""
        async with self._lock:
            error = model.failure
            if model.is_present and error is not None:
                model.last_failure = error  # else it would be "unloaded" for a moment
                await self._unload(model)
                model.fail(error)
                self._failed_at[model.id] = time.monotonic()

    # ---- room ----

    async def _make_room(self, model: ServedModel) -> MemoryShare | None:
        """Unload others as needed and return the model's share. Raises ModelLoadError."""
        if len(self._models) == 1:
            return None
        mine = await self._measure(model)
        limit = self._limit_bytes
        if mine is None or limit is None:
            return None
        pinned = sum(_held(other) for other in self._models if other is not model and other.is_pinned)
        if mine.least_bytes > limit - pinned:
            raise ModelLoadError(too_large(model.id, mine, limit, pinned))
        while mine.wanted_bytes > self._free(model, limit) and (victim := self._choose_victim(model)) is not None:
            logger.info("'%s' needs %.2f GB: unloading '%s'", model.id, mine.wanted_bytes / 1e9, victim.id)
            await self._unload(victim)
        free = self._free(model, limit)
        if mine.least_bytes > free:
            raise ModelLoadError(too_large(model.id, mine, limit, limit - free))
        absent = [other.id for other in self._models if other is not model and other.share is None]
        others = [self._footprints[id] for id in absent if id in self._footprints]
        return MemoryShare(share_bytes=choose_share(free, mine, others), process_bytes=limit)

    def _free(self, model: ServedModel, limit: int) -> int:
        return limit - sum(_held(other) for other in self._models if other is not model)

    def _choose_victim(self, model: ServedModel) -> ServedModel | None:
        """Return the least recently used model that may be unloaded; unused ones first."""
        others = [o for o in self._models if o is not model and o.share is not None and not o.is_pinned]
        return min(others, key=lambda other: (other.num_users > 0, other.used_at), default=None)

    async def _measure(self, model: ServedModel) -> Footprint | None:
        """Return the model's footprint; the first call measures all. Raises ModelLoadError for its own."""
        for each in (model, *self._models):
            if each.id in self._footprints or each.estimate_footprint is None:
                continue
            try:
                found = self._footprints[each.id] = await asyncio.to_thread(each.estimate_footprint)
            except EngineError:
                if each is model:
                    raise
                continue
            if self._limit_bytes is None:
                self._limit_bytes = found.limit_bytes
        return self._footprints.get(model.id)

    # ---- unloading ----

    async def _unload_in_turn(self, model: ServedModel) -> None:
        async with self._lock:
            if model.is_present:
                await self._unload(model)

    async def _unload(self, model: ServedModel) -> None:
        """Unload the model when its requests are done. Requires the lock."""
        model.is_leaving = True
        try:
            await self._until_idle(model)
            await asyncio.to_thread(model.unload)
        finally:
            model.is_leaving = False
        logger.info("unloaded '%s'", model.id)
        if self._watcher is not None:
            self._watcher.unloaded(model)

    async def _until_idle(self, model: ServedModel) -> None:
        idle = self._idle[model.id] = asyncio.Event()
        try:
            if model.num_users:
                await idle.wait()
        finally:
            del self._idle[model.id]

    async def _sweep(self) -> None:
        """Unload models that have been idle for their `keep_alive_s`."""
        watched = [(model, model.keep_alive_s) for model in self._models if model.keep_alive_s is not None]
        pause_s = min(1.0, min(keep_s for _, keep_s in watched) / 4)
        while True:
            await asyncio.sleep(max(pause_s, _LEAST_PAUSE_S))
            for model, keep_s in watched:
                if _is_idle(model, keep_s):
                    async with self._lock:
                        if _is_idle(model, keep_s):
                            await self._unload(model)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task, referenced until done; its failure reaches its waiters."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, EngineError):
            logger.error("a model could not be loaded or unloaded", exc_info=error)


def _held(model: ServedModel) -> int:
    return 0 if model.share is None else model.share.share_bytes


def _is_idle(model: ServedModel, keep_s: float) -> bool:
    is_loaded = model.state == "loaded" and not model.is_leaving
    return is_loaded and model.num_users == 0 and time.monotonic() - model.used_at >= keep_s
