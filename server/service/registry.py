"""The models this server serves, by name. A request picks one of them and can never load another.

Owns a model's state and its lives; who is loaded when is decided in `residency`. Knows nothing of HTTP or of what is
generated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Literal

from mlx_backend.api.errors import EngineDead, EngineNotReady
from mlx_backend.api.interface import Engine, EngineHealth, Footprint, MemoryShare, ModelInfo
from server.errors import InvalidRequest, ModelNotFound
from server.grammars.compiler import GrammarCompiler, GrammarStats
from server.service.life import NO_ENGINE, Life, Recipe
from server.service.measures import Measures
from server.service.mock_script import MockAuthor
from server.service.residency import LOAD_WAIT_S, Lease, Residency, Watcher
from server.text.borders import BorderFinder
from server.text.tokenizer import Tokenizer

ModelState = Literal["unloaded", "loading", "loaded", "unloading", "failed"]


class ServedModel:
    """One model, loaded or not: an engine, and the tokenizer that belongs to it, both of which load in the background.

    State changes on the event loop, by `residency`; reading it, any thread may.
    """

    def __init__(
        self,
        id: str,
        engine: Engine | None,
        load_tokenizer: Callable[[], Tokenizer],
        *,
        aliases: Sequence[str] = (),
        recipe: Recipe | None = None,
        measure: Callable[[], Footprint] | None = None,
        is_vital: bool = True,
        is_pinned: bool = True,
        keep_alive_s: float | None = None,
    ) -> None:
        """`engine`: of the first life, where it is built already; without a `recipe` there is no second one.

        `is_vital`: loaded at the start, and its death is the server's. `is_pinned`: unloaded only when told to.
        `keep_alive_s`: unloaded when idle for so long; None: not for that.
        """
        self.id = id
        self.aliases = tuple(aliases)
        self.created = int(time.time())
        self.measures = Measures()
        self.is_vital, self.is_pinned, self.keep_alive_s = is_vital, is_pinned, keep_alive_s
        self.measure = measure
        self.num_users = 0
        """Requests that hold it; while there are any it is not unloaded, unless by force."""
        self.used_at = time.monotonic()
        self.share: MemoryShare | None = None
        """What it was told that it may use, while it is loaded."""
        self.is_leaving = False
        """It is to be unloaded when those who use it are done; whoever comes now waits for its next life."""
        self.last_info: ModelInfo | None = None
        """Of the life before, where it is not loaded."""
        self.last_failure: BaseException | None = None
        """Why it could not be loaded, or died; until it is loaded."""
        self._recipe = recipe
        self._first = Recipe(build_engine=_built_once, load_tokenizer=load_tokenizer) if recipe is None else recipe
        self._life: Life | None = Life(self._first, engine, self._died) if engine is not None or is_vital else None
        self._death_callbacks: list[Callable[[], None]] = []

    def start(self, share: MemoryShare | None = None) -> None:
        """Begin to load. Returns at once."""
        if self._life is None:
            self._life = Life(self._first, None, self._died)
        self.share, self.last_failure = share, None
        self.used_at = time.monotonic()
        self._life.start(self.id, share)

    def close(self) -> None:
        """End the engine, for good."""
        if self._life is not None:
            self._life.close()

    def fail(self, error: BaseException) -> None:
        """There is no life, or none any more, because of `error`; of a vital model that is a death."""
        self._life, self.share, self.last_failure = None, None, error
        if self.is_vital:
            self._died()

    def unload(self) -> None:
        """End the engine, and let go of everything that the model holds. Waits for it."""
        if self._life is not None:
            self._life.close()
            self.last_info = self.engine.model_info or self.last_info
        self._life = self.share = None

    @property
    def engine(self) -> Engine:
        """Of the current life; one that does nothing where there is none."""
        life = self._life
        return NO_ENGINE if life is None else life.engine

    @property
    def is_present(self) -> bool:
        """Whether it has memory, or is about to: from the start of loading to the end of unloading."""
        return self._life is not None

    @property
    def can_be_loaded(self) -> bool:
        """Whether `start` would do something: without a recipe there is one life."""
        return self._life is not None or self._recipe is not None

    @property
    def state(self) -> ModelState:
        if self.failure is not None:
            return "failed"
        if self._life is None:
            return "unloaded"
        if self.is_leaving or self._life.is_ended:
            return "unloading"
        return "loading" if self.tokenizer is None or self.engine.model_info is None else "loaded"

    @property
    def info(self) -> ModelInfo | None:
        """What is known of it, from this life or the one before."""
        return self.engine.model_info or self.last_info

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None until it has loaded."""
        life = self._life
        return None if life is None else life.tokenizer

    @property
    def grammars(self) -> GrammarCompiler:
        """The grammars that answers follow. To be asked for when the tokenizer has loaded."""
        return self._alive().grammars

    @property
    def grammar_stats(self) -> GrammarStats:
        """Counters of the grammars of this life; zeros where it is not loaded."""
        return GrammarStats() if self._life is None else self._life.grammar_stats

    @property
    def author(self) -> MockAuthor | None:
        """The writer of its answers, if it is a mock with a script or a tokenizer."""
        return self._first.author

    @property
    def borders(self) -> BorderFinder:
        """Where chats may go on differently. To be asked for when the tokenizer has loaded."""
        return self._alive().borders

    @property
    def failure(self) -> BaseException | None:
        """Why this life of it is over, of the engine or of the tokenizer, or why there was none."""
        life = self._life
        return self.last_failure if life is None else life.failure

    def on_death(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, from another thread, when `failure` is set. To be said before `start`."""
        self._death_callbacks.append(callback)

    def ready(self) -> tuple[Tokenizer, ModelInfo]:
        """What serving needs. Raises EngineDead or EngineNotReady."""
        if self.failure is not None:
            raise EngineDead(f"the model '{self.id}' cannot be served any more: {self.failure}")
        tokenizer, info = self.tokenizer, self.engine.model_info
        if tokenizer is None or info is None:
            raise EngineNotReady(f"the model '{self.id}' is still loading")
        return tokenizer, info

    def health(self) -> EngineHealth:
        """Of an unloaded one, ok: it can be loaded."""
        life = self._life
        if life is not None:
            return life.health()
        if self.last_failure is not None:
            return EngineHealth(status="dead", detail=str(self.last_failure))
        return NO_ENGINE.health()

    def _alive(self) -> Life:
        if self._life is None:
            raise EngineNotReady(f"the model '{self.id}' is not loaded")
        return self._life

    def _died(self) -> None:
        for callback in self._death_callbacks:
            callback()


def _built_once(_: MemoryShare | None) -> Engine:
    raise EngineDead("its engine was built once")


class ModelRegistry:
    """Served models by name, and the way to one that is loaded."""

    def __init__(
        self, models: Sequence[ServedModel], watcher: Watcher | None = None, *, load_wait_s: float = LOAD_WAIT_S
    ) -> None:
        self._models = {model.id: model for model in models}
        self._names = {name: model for model in models for name in (model.id, *model.aliases)}
        self.residency = Residency(models, watcher, load_wait_s=load_wait_s)

    def start(self) -> None:
        """Begin to load every vital model. Returns at once; called on the event loop where there are several."""
        self.residency.start()

    async def close(self) -> None:
        """End every engine; what is still running fails."""
        await self.residency.close()
        for model in self._models.values():
            await asyncio.to_thread(model.close)

    def list(self) -> tuple[ServedModel, ...]:
        return tuple(self._models.values())

    def resolve(self, name: str) -> ServedModel:
        """The model called `name`; no name means the only one. Raises ModelNotFound, InvalidRequest."""
        if not name and len(self._models) == 1:
            return next(iter(self._models.values()))
        if not name:
            raise InvalidRequest("Several models are served: the parameter 'model' is required.", param="model")
        if name not in self._names:
            raise ModelNotFound(name, tuple(self._models))
        return self._names[name]

    async def acquire(self, name: str) -> Lease:
        """The model called `name`, which stays until the lease is released; loaded first where it is not.

        At the start, nobody waits for a vital one: `ready` says that it loads. Raises APIError, EngineError.
        """
        return await self.residency.acquire(self.resolve(name))

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[ServedModel]:
        """The model called `name`, for as long as the context. Raises what `acquire` raises."""
        lease = await self.acquire(name)
        try:
            yield lease.model
        finally:
            lease.release()
