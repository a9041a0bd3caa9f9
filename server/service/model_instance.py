"""One instance of a model in memory, from the check of its files to its close; freed as a whole.

A reloaded model gets a new instance, with a new engine and tokenizer.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import NoReturn

from mlx_backend.api.errors import EngineNotReady, let_go_of_frames
from mlx_backend.api.interface import Engine, EngineHealth, EngineStats, LoadProgress, MemoryShare
from server.config import GrammarConfig
from server.grammars.compiler import LEAST_MEMORY_BYTES, MEMORY_BYTES, GrammarBudget, GrammarCompiler, GrammarStats
from server.service.mock_script import MockAuthor
from server.text.borders import BorderFinder
from server.text.tokenizer import Tokenizer

logger = logging.getLogger("pippin.models")

Report = Callable[[LoadProgress], None]

_LONG_S = 600.0
"""Timeout for freeing hundreds of gigabytes; until then they count as held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Functions and settings that create a model's instances."""

    build_engine: Callable[[MemoryShare | None], Engine]
    """Called on the instance's loading thread. Raises ModelLoadError."""
    load_tokenizer: Callable[[], Tokenizer]
    check: Callable[[Report], None] | None = None
    """Check of the files before loading, with progress reports. Raises ModelLoadError."""
    author: MockAuthor | None = None
    """Writer of a mock's answers; None for other models."""
    grammars: GrammarConfig = field(default_factory=GrammarConfig)
    computes_ahead: bool = False
    """Whether the beginning of a chat's next prompt is computed while idle."""
    warms_grammars: bool = False
    """Whether the grammar compiler starts with the model; otherwise with the first grammar."""


class _Ended(Exception):
    """Stops the loading thread when the instance is closed; not a failure."""


class ModelInstance:
    """One instance, loaded in the background. `engine` is NO_ENGINE until there is one."""

    def __init__(self, recipe: Recipe, engine: Engine | None, on_death: Callable[[], None]) -> None:
        """`engine`: already built, not started. `on_death` is called from another thread."""
        self._recipe = recipe
        self._built = engine
        self._on_death = on_death
        self._lock = threading.Lock()
        self._is_ended = False
        self._failure: BaseException | None = None
        self._checked: LoadProgress | None = None
        self._settled: Future[None] = Future()
        self.engine: Engine = NO_ENGINE if engine is None or recipe.check is not None else engine
        self.tokenizer: Tokenizer | None = None

    def start(self, name: str, share: MemoryShare | None = None) -> None:
        """Start loading. Returns at once."""
        if self._built is not None and self._recipe.check is None:
            self._start_engine(self._built)
        threading.Thread(target=self._run, args=(name, share), name=f"loading {name}", daemon=True).start()

    def close(self) -> None:
        """Close the engine; running requests fail."""
        with self._lock:
            self._is_ended = True
        self._settle()
        self.engine.close(_LONG_S)
        if self._has_grammars:
            self.grammars.close()

    async def until_settled(self) -> None:
        """Return when loading has ended: with success, with a failure, or because the instance was closed."""
        await asyncio.shield(asyncio.wrap_future(self._settled))

    @property
    def is_ended(self) -> bool:
        """Whether it was closed."""
        return self._is_ended

    @property
    def failure(self) -> BaseException | None:
        return self.engine.failure or self._failure

    def health(self) -> EngineHealth:
        """Return the engine's health, or if ok the tokenizer's; without an engine, that of the file check."""
        if self._failure is not None:
            return EngineHealth(status="dead", detail=str(self._failure), load=self.engine.health().load)
        if self.engine is NO_ENGINE:
            is_checking = self._checked is not None
            detail = "its files are being verified" if is_checking else "it is about to load"
            return EngineHealth(status="loading", detail=detail, load=self._checked or LoadProgress())
        health = self.engine.health()
        if self.tokenizer is None and health.status == "ok":
            return EngineHealth(status="loading", detail="the tokenizer is loading", load=health.load)
        return health

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """Compiler of the model's grammars, in separate processes."""
        given, info = self._recipe.grammars, self.engine.model_info
        if given.memory_gb is not None:
            memory_bytes = round(given.memory_gb * 1e9)
        elif info is None or info.memory is None:
            memory_bytes = MEMORY_BYTES
        else:  # the reserve covers what no other part of the plan counts
            memory_bytes = max(LEAST_MEMORY_BYTES, min(MEMORY_BYTES, info.memory.reserve_bytes // 4))
        return GrammarCompiler(self._loaded_tokenizer(), GrammarBudget(given.compile_s, memory_bytes))

    @property
    def grammar_stats(self) -> GrammarStats:
        """Counters of the grammars; zeros before the first."""
        return self.grammars.stats() if self._has_grammars else GrammarStats()

    @property
    def _has_grammars(self) -> bool:
        return "grammars" in self.__dict__  # the cache of the property

    @cached_property
    def borders(self) -> BorderFinder:
        return BorderFinder(self._loaded_tokenizer())

    def _loaded_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise EngineNotReady("the tokenizer is still loading")
        return self.tokenizer

    def _run(self, name: str, share: MemoryShare | None) -> None:
        try:
            if self._recipe.check is not None:
                self._recipe.check(self._report_check)
            if self._built is None or self._recipe.check is not None:
                self._start_engine(self._built or self._recipe.build_engine(share))
            self.tokenizer = self._recipe.load_tokenizer()
            if self._recipe.warms_grammars and not self._is_ended:
                self.grammars.warm_up()
            self.engine.wait_loaded()
            self._settle()
        except _Ended:
            logger.info("loading '%s' was cancelled", name)
        except Exception as error:  # noqa: BLE001 - a thread has no caller: kept as `failure`
            self._failure = error
            let_go_of_frames(error)
            logger.error("'%s' cannot be loaded: %s", name, error)
            self._die()

    def _die(self) -> None:
        self._settle()
        self._on_death()

    def _settle(self) -> None:
        with self._lock:
            if not self._settled.done():
                self._settled.set_result(None)

    def _start_engine(self, engine: Engine) -> None:
        with self._lock:
            if self._is_ended:
                raise _Ended
            self.engine = engine
            engine.on_death(self._die)
            engine.start()

    def _report_check(self, progress: LoadProgress) -> None:
        self._checked = progress
        if self._is_ended:
            raise _Ended


class _NoEngine:
    """Implements `Engine` for a model that is not loaded."""

    model_info = None
    failure = None

    def start(self) -> None:
        """Do nothing."""

    def wait_loaded(self) -> None:
        """Return at once."""

    def submit(self, requests: object) -> NoReturn:
        raise EngineNotReady("the model is not loaded")

    def stats(self) -> EngineStats:
        return EngineStats()

    def health(self) -> EngineHealth:
        return EngineHealth(status="ok", detail="not loaded; a request loads it")

    def on_death(self, callback: Callable[[], None]) -> None:
        """Do nothing."""

    def load_adapter(self, adapter: object) -> NoReturn:
        raise EngineNotReady("the model is not loaded")

    def unload_adapter(self, name: object) -> NoReturn:
        raise EngineNotReady("the model is not loaded")

    def close(self, timeout_s: float = 0.0) -> None:
        """Do nothing."""


NO_ENGINE: Engine = _NoEngine()
