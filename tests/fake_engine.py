"""FakeEngine: a scripted, in-process `mlx_backend.api.interface.Engine` for unit tests.

To test real engine behavior, use the real engine with the mock runner. Here the test scripts every batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from typing import Final

from mlx_backend.api.errors import AdapterRefused, EngineError
from mlx_backend.api.interface import (
    AdapterConfig,
    DraftedTokens,
    EngineHealth,
    EngineStats,
    FinishReason,
    GenerationRequest,
    LoadProgress,
    ModelInfo,
    PrefillProgress,
    PromptEvent,
    StreamEvent,
    TokenEvent,
    TokenLogprobs,
)
from mlx_backend.engine.checks import check_token_ids

HANG: Final = "hang"
"""In a script: nothing follows until the stream is closed. An event: nothing until it is set."""

Batch = tuple[TokenEvent, ...]
Script = Sequence[tuple[StreamEvent, ...] | Exception | str | asyncio.Event]


def spell(text: str, *, index: int = 0, reason: FinishReason | None = "length", logprob: float | None = None) -> Batch:
    """Return one event per byte of `text`, the last with `reason`."""
    ids = list(text.encode())
    logprobs = None if logprob is None else TokenLogprobs(logprob, ((ids[0], logprob),))
    last = len(ids) - 1
    return tuple(TokenEvent(index, id, logprobs, reason if i == last else None) for i, id in enumerate(ids))


def prompted(num_tokens: int, *, index: int = 0, num_top: int = 0, ends: bool = False) -> PromptEvent:
    """Return a prompt event: its i-th token has log-probability -i, with the tokens 0, 1, ... as alternatives."""
    logprobs = tuple(
        TokenLogprobs(-float(place), tuple((other, -other / 8) for other in range(num_top)))
        for place in range(1, num_tokens)
    )
    return PromptEvent(index, logprobs, "length" if ends else None)


def one_by_one(text: str, **options: object) -> list[Batch]:
    """Return the events of `spell`, each in its own batch."""
    return [(event,) for event in spell(text, **options)]  # type: ignore[arg-type]


class FakeStream:
    """A scripted TokenStream."""

    def __init__(self, script: Script) -> None:
        self._script = list(script)
        self._closed = asyncio.Event()
        self.aborted: list[int] = []
        self.finished: list[int] = []
        self.num_closed = 0
        self.num_read = 0
        self.progress = PrefillProgress(num_computed_tokens=43, num_prompt_tokens=100)
        self.num_cached_tokens = 0
        self.queue_time_s: float | None = 0.5
        self.drafted = DraftedTokens()

    def __aiter__(self) -> AsyncIterator[tuple[StreamEvent, ...]]:
        return self

    async def __anext__(self) -> tuple[StreamEvent, ...]:
        await asyncio.sleep(0)
        if not self._script:
            raise StopAsyncIteration
        item = self._script.pop(0)
        self.num_read += 1
        if isinstance(item, Exception):
            raise item
        if isinstance(item, str):
            await self._closed.wait()
            raise StopAsyncIteration
        if isinstance(item, asyncio.Event):
            await item.wait()
            return await anext(self)
        return item

    def abort(self, index: int) -> None:
        self.aborted.append(index)

    def finish(self, index: int) -> None:
        self.finished.append(index)

    async def aclose(self) -> None:
        self.num_closed += 1
        self._closed.set()


class FakeEngine:
    """A scripted Engine; every submission plays the same script. `refusal` is raised by `submit`."""

    def __init__(self, script: Script = (), *, info: ModelInfo | None = None, is_loaded: bool = True) -> None:
        self.script = script
        self.model_info = (info or ModelInfo(context_limit=64, vocab_size=260)) if is_loaded else None
        self.refusal: EngineError | None = None
        self.failure: BaseException | None = None
        self.state = EngineHealth(status="ok" if is_loaded else "loading", load=LoadProgress())
        self.requests: list[GenerationRequest] = []
        self.streams: list[FakeStream] = []
        self.num_started = self.num_closed = 0
        self.callbacks: list[Callable[[], None]] = []

    def start(self) -> None:
        self.num_started += 1

    def wait_loaded(self) -> None:
        """Nothing of it goes on in the background."""

    def submit(self, requests: Sequence[GenerationRequest]) -> FakeStream:
        if self.refusal is not None:
            raise self.refusal
        for request in requests:
            check_token_ids(request, self.model_info.vocab_size if self.model_info else 0)
        self.requests += requests
        self.streams.append(FakeStream(self.script))
        return self.streams[-1]

    def stats(self) -> EngineStats:
        return EngineStats()

    def health(self) -> EngineHealth:
        return self.state

    def on_death(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def load_adapter(self, adapter: AdapterConfig) -> Future[ModelInfo]:
        raise AdapterRefused("a script has no adapters")

    def unload_adapter(self, name: str) -> Future[ModelInfo]:
        raise AdapterRefused("a script has no adapters")

    def close(self, timeout_s: float = 10.0) -> None:
        self.num_closed += 1
