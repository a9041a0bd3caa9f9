"""The adapters of one served model: which are held, where their files may be, and having them come and go.

Belongs to the event loop. What is held outlives the model's instance: a model that is loaded again has the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlx_backend.api.errors import AdapterRefused, UnknownAdapter
from mlx_backend.api.interface import AdapterConfig
from server.adapters import is_name
from server.errors import InvalidRequest

if TYPE_CHECKING:
    from server.service.registry import ServedModel
    from server.service.residency import Residency

_MOST_CHARS = 4096


class AdapterSet:
    """`configured`: those that the model begins with. `folder`: where others may be, each in a folder of its own.

    `default`: the one that requests for the model itself have; empty: none.
    """

    def __init__(self, configured: Iterable[AdapterConfig] = (), folder: Path | None = None, default: str = "") -> None:
        self.configured: Mapping[str, AdapterConfig] = {adapter.name: adapter for adapter in configured}
        self.default = default
        self._folder = folder
        self._held = dict(self.configured)
        self._known = set(self.configured)
        self._leaving = dict[str, asyncio.Task[None]]()
        self._tasks = set[asyncio.Task[None]]()
        self._reading = asyncio.Lock()

    @property
    def held(self) -> tuple[AdapterConfig, ...]:
        """Those that requests may name, in the order in which they came."""
        return tuple(self._held.values())

    @property
    def names(self) -> tuple[str, ...]:
        """What requests call them behind the model's name."""
        return tuple(name for name in self._held if name != self.default)

    def states(self) -> dict[str, Literal["loaded", "unloading", "unloaded"]]:
        """All that are known, by name."""
        names = dict.fromkeys([*self.configured, *self._held, *sorted(self._leaving)])
        return {
            name: "loaded" if name in self._held else "unloading" if name in self._leaving else "unloaded"
            for name in names
        }

    def is_held(self, name: str) -> bool:
        """Whether requests may name it."""
        return name in self._held

    def is_known(self, name: str) -> bool:
        """Whether it is held, was, or could be by its name alone: requests for it are for nothing else."""
        return name in self._known

    def find(self, name: str, folder: str | None) -> AdapterConfig:
        """The adapter to be loaded as `name`, out of its own folder or, where that is allowed, of another one.

        Raises InvalidRequest.
        """
        if not is_name(name):
            raise InvalidRequest("An adapter's name is made of letters, digits, and . _ -.", param="name")
        own = self.configured.get(name)
        if folder is None and own is not None:
            return own
        if folder is not None:
            given = next((each for each in self.configured.values() if each.path == folder), None)
            if given is not None:
                return AdapterConfig(name, given.path)
        return AdapterConfig(name, str(self._below(name if folder is None else folder)))

    def _below(self, folder: str) -> Path:
        """A folder below `adapters_folder`, of which a link may not lead out. Raises InvalidRequest."""
        if self._folder is None:
            raise InvalidRequest(
                "This server loads the adapters of its configuration; others need its setting adapters_folder.",
                param="folder",
            )
        refused = InvalidRequest("There is no such folder of an adapter below adapters_folder.", param="folder")
        if len(folder) > _MOST_CHARS:
            raise refused
        try:
            root = self._folder.resolve()
            found = (root / folder).resolve()
            is_below = found != root and found.is_relative_to(root) and found.is_dir()
        except (OSError, ValueError, RuntimeError):
            raise refused from None
        if not is_below:
            raise refused
        return found

    async def load(self, residency: Residency, model: ServedModel, adapter: AdapterConfig) -> None:
        """Have an adapter held, its model loaded first where it is not. One that is held stays as it is.

        Goes on without the caller. Raises EngineError.
        """
        await asyncio.shield(self._begin(self._load(residency, model, adapter)))

    async def unload(self, residency: Residency, model: ServedModel, name: str) -> None:
        """Have an adapter go when its requests are done. It takes no new ones; goes on without the caller.

        Raises EngineError.
        """
        if name == self.default:
            raise AdapterRefused(f"adapter {name} is what requests for '{model.id}' have; it goes with the model alone")
        if name in self._held:
            work = self._unload(residency, model, self._held.pop(name))
            task = self._leaving[name] = self._begin(work)
            task.add_done_callback(lambda _: self._leaving.pop(name))
        if name in self._leaving:
            await asyncio.shield(self._leaving[name])

    async def _load(self, residency: Residency, model: ServedModel, adapter: AdapterConfig) -> None:
        if self._check_held(adapter):
            return
        await residency.load(model)
        lease = await residency.acquire(model)
        try:
            async with self._reading:  # one at a time is read and loaded: a flood of them takes one thread
                if self._check_held(adapter):
                    return
                await asyncio.wrap_future(await asyncio.to_thread(model.engine.load_adapter, adapter))
                self._held[adapter.name] = adapter
                self._known.add(adapter.name)
        finally:
            lease.release()
        residency.forget_footprint(model)

    def _check_held(self, adapter: AdapterConfig) -> bool:
        if adapter.name in self._leaving:
            raise AdapterRefused(f"adapter {adapter.name} is still being unloaded: its requests are not done")
        held = self._held.get(adapter.name)
        if held is not None and held != adapter:
            raise AdapterRefused(f"adapter {adapter.name} is loaded from another folder; unload it first")
        return held is not None

    async def _unload(self, residency: Residency, model: ServedModel, adapter: AdapterConfig) -> None:
        residency.forget_footprint(model)
        if not residency.is_coming(model):
            return
        try:
            await residency.load(model)
            lease = await residency.acquire(model)
            try:
                await asyncio.wrap_future(model.engine.unload_adapter(adapter.name))
            finally:
                lease.release()
        except UnknownAdapter:
            return  # the model was loaded again meanwhile, without it
        except AdapterRefused:
            self._held[adapter.name] = adapter
            raise

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # those that still wait have it
