"""Adapters of one served model: those it holds, the allowed places of their files, loading and unloading.

Used on the event loop only. Held adapters outlive the model's instance: a reloaded model has the same ones.
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
    """Adapters of one model. `configured`: the initial ones. `folder`: parent of the folders of others.

    `default`: the adapter used by requests for the model itself; empty: none.
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
        """Adapters that requests may name, in the order of loading."""
        return tuple(self._held.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Names that requests append to the model's name."""
        return tuple(name for name in self._held if name != self.default)

    def states(self) -> dict[str, Literal["loaded", "unloading", "unloaded"]]:
        """Return the state of all known adapters, by name."""
        names = dict.fromkeys([*self.configured, *self._held, *sorted(self._leaving)])
        return {
            name: "loaded" if name in self._held else "unloading" if name in self._leaving else "unloaded"
            for name in names
        }

    def is_held(self, name: str) -> bool:
        """Return whether requests may name it."""
        return name in self._held

    def is_known(self, name: str) -> bool:
        """Return whether it is or was held, or can be loaded by name alone: the name then means nothing else."""
        return name in self._known

    def find(self, name: str, folder: str | None) -> AdapterConfig:
        """Return the adapter to load as `name`, from its own folder or, if allowed, from another one.

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
        """Return a folder below `adapters_folder`, with links resolved. Raises InvalidRequest."""
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
        """Load an adapter, and first its model if needed. An adapter already held stays as it is.

        Continues without the caller. Raises EngineError.
        """
        await asyncio.shield(self._begin(self._load(residency, model, adapter)))

    async def unload(self, residency: Residency, model: ServedModel, name: str) -> None:
        """Unload an adapter when its requests are done; it takes no new ones. Continues without the caller.

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
            async with self._reading:  # one at a time: many loads then occupy only one thread
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
            return  # the model was reloaded meanwhile, without it
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
            task.exception()  # its waiters receive it
