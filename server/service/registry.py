"""The models this server serves, by name. A request picks one of them and can never load another.

Owns engines and tokenizers from start to close. Knows nothing of HTTP or of what is generated.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property

from mlx_backend.errors import EngineDead, EngineNotReady
from mlx_backend.interface import Engine, EngineHealth, ModelInfo
from server.errors import InvalidRequest, ModelNotFound
from server.text.grammar import GrammarCompiler
from server.text.tokenizer import Tokenizer

logger = logging.getLogger("pippin.models")


class ServedModel:
    """One model: an engine, and the tokenizer that belongs to it, both of which load in the background."""

    def __init__(
        self,
        id: str,
        engine: Engine,
        load_tokenizer: Callable[[], Tokenizer],
        *,
        aliases: Sequence[str] = (),
    ) -> None:
        self.id = id
        self.engine = engine
        self.aliases = tuple(aliases)
        self.created = int(time.time())
        self._load_tokenizer = load_tokenizer
        self._tokenizer: Tokenizer | None = None
        self._tokenizer_failure: BaseException | None = None
        self._death_callbacks: list[Callable[[], None]] = []

    def start(self) -> None:
        """Begin to load. Returns at once."""
        self.engine.start()
        threading.Thread(target=self._load, name=f"tokenizer {self.id}", daemon=True).start()

    def close(self) -> None:
        self.engine.close()

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None until it has loaded."""
        return self._tokenizer

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """The grammars that answers follow. To be asked for when the tokenizer has loaded."""
        tokenizer, _ = self.ready()
        return GrammarCompiler(tokenizer)

    @property
    def failure(self) -> BaseException | None:
        """Why this model will not be served any more, of the engine or of the tokenizer."""
        return self.engine.failure or self._tokenizer_failure

    def on_death(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, from another thread, when `failure` is set. To be said before `start`."""
        self._death_callbacks.append(callback)
        self.engine.on_death(callback)

    def ready(self) -> tuple[Tokenizer, ModelInfo]:
        """What serving needs. Raises EngineDead or EngineNotReady."""
        if self.failure is not None:
            raise EngineDead(f"the model '{self.id}' cannot be served any more: {self.failure}")
        info = self.engine.model_info
        if self._tokenizer is None or info is None:
            raise EngineNotReady(f"the model '{self.id}' is still loading")
        return self._tokenizer, info

    def health(self) -> EngineHealth:
        """The engine's, and where that is well, the tokenizer's."""
        health = self.engine.health()
        if self._tokenizer_failure is not None and health.status != "dead":
            return EngineHealth(status="dead", detail=str(self._tokenizer_failure), load=health.load)
        if self._tokenizer is None and health.status == "ok":
            return EngineHealth(status="loading", detail="the tokenizer is loading", load=health.load)
        return health

    def _load(self) -> None:
        try:
            self._tokenizer = self._load_tokenizer()
        except Exception as error:  # noqa: BLE001 - a thread has no caller: kept for whoever asks
            self._tokenizer_failure = error
            logger.error("the tokenizer of '%s' cannot be loaded: %s", self.id, error)
            for callback in self._death_callbacks:
                callback()


class ModelRegistry:
    """Served models by name."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {model.id: model for model in models}
        self._names = {name: model for model in models for name in (model.id, *model.aliases)}

    def start(self) -> None:
        """Begin to load every model. Returns at once."""
        for model in self._models.values():
            model.start()

    async def close(self) -> None:
        """End every engine; what is still running fails."""
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
