"""Models of this server, by name. A request selects one of them and can never load another.

Owns a model's state and instances; `residency` decides which models are loaded. Independent of HTTP and of
generation.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from typing import Literal

from mlx_backend.api.errors import EngineDead, EngineNotReady
from mlx_backend.api.interface import Engine, EngineHealth, Footprint, MemoryShare, ModelInfo
from server.adapters import served_name
from server.errors import AdapterNotLoaded, InvalidRequest, ModelNotFound
from server.grammars.compiler import GrammarCompiler, GrammarStats
from server.request_defaults import RequestDefaults
from server.service.adapters import AdapterSet
from server.service.defaults import NO_DEFAULTS
from server.service.encoding import run_in_text_thread
from server.service.measures import Measures
from server.service.mock_script import MockAuthor
from server.service.model_instance import NO_ENGINE, ModelInstance, Recipe
from server.service.next_turn import Ahead
from server.service.residency import LOAD_WAIT_S, Lease, Residency, Watcher
from server.text.borders import BorderFinder
from server.text.parsers.parts import ChatFormat
from server.text.tokenizer import Tokenizer

logger = logging.getLogger("pippin.models")

ModelState = Literal["unloaded", "loading", "loaded", "unloading", "failed"]


class ServedModel:
    """One model, loaded or not: an engine and its tokenizer, which load in the background.

    `residency` changes the state on the event loop; any thread may read it.
    """

    def __init__(
        self,
        id: str,
        engine: Engine | None,
        load_tokenizer: Callable[[], Tokenizer],
        *,
        aliases: Sequence[str] = (),
        adapters: AdapterSet | None = None,
        recipe: Recipe | None = None,
        estimate_footprint: Callable[[], Footprint] | None = None,
        is_required: bool = True,
        is_pinned: bool = True,
        keep_alive_s: float | None = None,
        defaults: RequestDefaults = NO_DEFAULTS,
    ) -> None:
        """`engine`: of the first instance, if already built; without a `recipe` there is no second one.

        `is_required`: loaded at the start; its failure ends the server. `is_pinned`: unloaded only on request.
        `keep_alive_s`: idle time before unloading; None: not unloaded for idleness.
        """
        self.id = id
        self.aliases = tuple(aliases)
        self.adapters = AdapterSet() if adapters is None else adapters
        self.created = int(time.time())
        self.measures = Measures()
        self.is_required, self.is_pinned, self.keep_alive_s = is_required, is_pinned, keep_alive_s
        self.defaults = defaults
        """Defaults for its requests."""
        self.estimate_footprint = estimate_footprint
        self.num_users = 0
        """Number of requests that hold it; it is unloaded only without any, or by force."""
        self.used_at = time.monotonic()
        self.share: MemoryShare | None = None
        """Memory assigned to it while it is loaded."""
        self.is_leaving = False
        """Whether it is unloaded once its requests finish; new requests wait for its next instance."""
        self.last_info: ModelInfo | None = None
        """Info of the previous instance, while not loaded."""
        self.last_format: ChatFormat | None = None
        """Chat format of the previous instance."""
        self.last_failure: BaseException | None = None
        """Reason it failed to load or died; cleared by the next load."""
        self.ahead = Ahead()
        self._finding: asyncio.Future[None] | None = None
        self._recipe = recipe
        self._first = Recipe(build_engine=_built_once, load_tokenizer=load_tokenizer) if recipe is None else recipe
        self._instance: ModelInstance | None = (
            ModelInstance(self._first, engine, self._died) if engine is not None or is_required else None
        )
        self._death_callbacks: list[Callable[[], None]] = []

    def start(self, share: MemoryShare | None = None) -> None:
        """Start loading. Returns at once."""
        if self._instance is None:
            self._instance = ModelInstance(self._first, None, self._died)
        self.share, self.last_failure = share, None
        self.used_at = time.monotonic()
        self._instance.start(self.id, share)

    async def until_settled(self) -> None:
        """Return when loading has ended, successfully or not; at once if nothing loads."""
        if self._instance is not None:
            await self._instance.until_settled()

    def close(self) -> None:
        """Close the engine permanently."""
        if self._instance is not None:
            self._instance.close()

    def fail(self, error: BaseException) -> None:
        """Drop the instance because of `error`; for a required model, this ends the server."""
        self._instance, self.share, self.last_failure = None, None, error
        if self.is_required:
            self._died()

    def unload(self) -> None:
        """Close the engine and free everything that the model holds. Blocks until done."""
        if self._instance is not None:
            self._instance.close()
            self.last_info, self.last_format = self.info, self.chat_format
        self._instance = self.share = None

    @property
    def adapter_ids(self) -> tuple[str, ...]:
        """Names of its adapters, as used in requests."""
        return tuple(served_name(self.id, adapter) for adapter in self.adapters.names)

    def name_with(self, adapter: str) -> str:
        """Return the name of the model with one of its adapters, as used in answers."""
        return served_name(self.id, "" if adapter == self.adapters.default else adapter)

    @property
    def engine(self) -> Engine:
        """Engine of the current instance; a null engine if there is none."""
        instance = self._instance
        return NO_ENGINE if instance is None else instance.engine

    @property
    def is_present(self) -> bool:
        """Whether it holds memory or is about to: from the start of loading to the end of unloading."""
        return self._instance is not None

    @property
    def can_be_loaded(self) -> bool:
        """Whether `start` would have an effect: without a recipe there is only one instance."""
        return self._instance is not None or self._recipe is not None

    @property
    def state(self) -> ModelState:
        if self.failure is not None:
            return "failed"
        if self._instance is None:
            return "unloaded"
        if self.is_leaving or self._instance.is_ended:
            return "unloading"
        return "loading" if self.tokenizer is None or self.engine.model_info is None else "loaded"

    @property
    def info(self) -> ModelInfo | None:
        """Info from this instance or the previous one."""
        return self.engine.model_info or self.last_info

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Tokenizer; None until loaded."""
        instance = self._instance
        return None if instance is None else instance.tokenizer

    @property
    def chat_format(self) -> ChatFormat | None:
        """Marks of reasoning and calls, from this instance or the previous one; None until loaded once."""
        return self.last_format if self.tokenizer is None else self.tokenizer.chat_format

    async def find_chat_format(self) -> None:
        """Set `chat_format` from the tokenizer's files, once, if the model was never loaded.

        It stays unknown if they cannot be read.
        """
        if self.state in ("unloaded", "failed") and self.chat_format is None:
            self._finding = self._finding or asyncio.ensure_future(self._find_chat_format())
            await asyncio.shield(self._finding)

    async def _find_chat_format(self) -> None:
        def load() -> ChatFormat:
            return self._first.load_tokenizer().chat_format

        try:
            found = await run_in_text_thread(load)
        except Exception as error:  # noqa: BLE001 - any fault of the files is reported when the model loads
            logger.warning("the tokenizer of %s cannot be read: %s", self.id, error)
            return
        self.last_format = self.last_format or found

    @property
    def grammars(self) -> GrammarCompiler:
        """Grammar compiler. Requires a loaded tokenizer."""
        return self._alive().grammars

    @property
    def grammar_stats(self) -> GrammarStats:
        """Counters of this instance's grammars; zeros if it is not loaded."""
        return GrammarStats() if self._instance is None else self._instance.grammar_stats

    @property
    def author(self) -> MockAuthor | None:
        """Writer of its answers, if it is a mock with a script or a tokenizer."""
        return self._first.author

    @property
    def computes_ahead(self) -> bool:
        """Whether the beginning of a chat's next prompt is computed while idle."""
        return self._first.computes_ahead

    @property
    def borders(self) -> BorderFinder:
        """Finder of the places where chats may diverge. Requires a loaded tokenizer."""
        return self._alive().borders

    @property
    def failure(self) -> BaseException | None:
        """Reason this instance failed (engine or tokenizer), or why there is none."""
        instance = self._instance
        return self.last_failure if instance is None else instance.failure

    def on_death(self, callback: Callable[[], None]) -> None:
        """Call `callback` from another thread when `failure` is set. Register it before `start`."""
        self._death_callbacks.append(callback)

    def ready(self) -> tuple[Tokenizer, ModelInfo]:
        """Return tokenizer and info. Raises EngineDead or EngineNotReady."""
        if self.failure is not None:
            raise EngineDead(f"the model '{self.id}' can no longer be served: {self.failure}")
        tokenizer, info = self.tokenizer, self.engine.model_info
        if tokenizer is None or info is None:
            raise EngineNotReady(f"the model '{self.id}' is still loading")
        return tokenizer, info

    def health(self) -> EngineHealth:
        """Return the health; ok if unloaded, since it can be loaded."""
        instance = self._instance
        if instance is not None:
            return instance.health()
        if self.last_failure is not None:
            return EngineHealth(status="dead", detail=str(self.last_failure))
        return NO_ENGINE.health()

    def _alive(self) -> ModelInstance:
        if self._instance is None:
            raise EngineNotReady(f"the model '{self.id}' is not loaded")
        return self._instance

    def _died(self) -> None:
        for callback in self._death_callbacks:
            callback()


def is_pattern(alias: str) -> bool:
    """Return whether an alias is a pattern: `*` matches any characters, `?` one."""
    return "*" in alias or "?" in alias


def _built_once(_: MemoryShare | None) -> Engine:
    raise EngineDead("its engine cannot be built again")


class ModelRegistry:
    """Served models by name, with access to loaded ones."""

    def __init__(
        self, models: Sequence[ServedModel], watcher: Watcher | None = None, *, load_wait_s: float = LOAD_WAIT_S
    ) -> None:
        self._models = {model.id: model for model in models}
        self._names = {name: model for model in models for name in (model.id, *model.aliases)}
        self._patterns = [(alias, model) for model in models for alias in model.aliases if is_pattern(alias)]
        self.residency = Residency(models, watcher, load_wait_s=load_wait_s)

    def start(self) -> None:
        """Start loading every required model. Returns at once; call it on the event loop if there are several."""
        self.residency.start()

    async def close(self) -> None:
        """Close every engine; running requests fail."""
        for model in self._models.values():
            model.ahead.stop()
        await self.residency.close()
        for model in self._models.values():
            await asyncio.to_thread(model.close)

    def list(self) -> tuple[ServedModel, ...]:
        return tuple(self._models.values())

    def resolve(self, name: str) -> ServedModel:
        """Return the model called `name`; no name means the only one. Raises ModelNotFound, InvalidRequest.

        Exact names and aliases come first, then a model's adapters, then the first alias with a pattern that
        matches.
        """
        if not name and len(self._models) == 1:
            return next(iter(self._models.values()))
        if not name:
            raise InvalidRequest("Several models are served: the parameter 'model' is required.", param="model")
        if name in self._names:
            return self._names[name]
        model, adapter = self.split(name)
        if model is not None and model.adapters.is_known(adapter):
            if not model.adapters.is_held(adapter):
                raise AdapterNotLoaded(name)
            return model
        for pattern, model in self._patterns:
            if fnmatchcase(name, pattern):
                return model
        served = (each for model in self._models.values() for each in (model.id, *model.adapter_ids))
        raise ModelNotFound(name, tuple(served))

    def adapter_of(self, name: str) -> str:
        """Return the adapter in `name`, or the model's default; empty for none. Raises what `resolve` raises."""
        model = self.resolve(name)
        of, adapter = self.split(name)
        return adapter if of is not None and of.adapters.is_known(adapter) else model.adapters.default

    def split(self, name: str) -> tuple[ServedModel | None, str]:
        """Split MODEL:NAME into the model and an adapter's name, which may not exist; None without such a model."""
        base, _, adapter = name.rpartition(":")
        return (None if name in self._names else self._names.get(base)), adapter

    def is_taken(self, model: ServedModel, adapter: str) -> bool:
        """Return whether the adapter's full name is already a model's."""
        return served_name(model.id, adapter) in self._names

    def name_of(self, name: str) -> str:
        """Return the name in answers of the model or adapter that `name` means. Raises what `resolve` raises."""
        return self.resolve(name).name_with(self.adapter_of(name))

    def defaults_of(self, name: str) -> RequestDefaults:
        """Return the defaults of the model called `name`; none for an unknown model, which is refused elsewhere."""
        try:
            return self.resolve(name).defaults
        except (ModelNotFound, InvalidRequest):
            return NO_DEFAULTS

    async def acquire(self, name: str) -> Lease:
        """Return a lease that keeps the model called `name` loaded until released; loads it first if needed.

        At the start, requests do not wait for a required model: `ready` reports it. Raises APIError, EngineError.
        """
        return await self.residency.acquire(self.resolve(name))

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[ServedModel]:
        """Yield the model called `name`, kept loaded during the context. Raises the errors of `acquire`."""
        lease = await self.acquire(name)
        try:
            yield lease.model
        finally:
            lease.release()
