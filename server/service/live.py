"""Current activity: the open requests, and the last minutes of measurements, second by second.

Read and written on the event loop only. Holds counters and progress, no content.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from server.service.measures import Histogram, Measures
    from server.service.registry import ModelRegistry

KEPT_S = 300
"""Seconds that are kept."""

LiveState = Literal["waiting", "reading", "writing"]
"""`waiting`: not started; `reading`: the prompt is being computed; `writing`: tokens have arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRequest:
    """Progress of one open request, over all its prompts and choices."""

    request_id: str
    kind: Literal["generation", "embedding", "scoring"]
    state: LiveState
    started_at: float
    """By `time.perf_counter`."""
    num_prompt_tokens: int
    num_computed_tokens: int
    """Prompt tokens computed or found in the cache."""
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    max_output_tokens: int | None = None
    """None: limited only by the context."""


Describe = Callable[[], LiveRequest]


class LiveRequests:
    """The open requests of one model, oldest first."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: dict[object, Describe] = {}

    def add(self, describe: Describe) -> Callable[[], None]:
        """Add a request by its `describe`; return a function that removes it. Idempotent."""
        place = object()
        self._found[place] = describe
        return lambda: self._found.pop(place, None) and None

    def list(self) -> list[LiveRequest]:
        return [describe() for describe in self._found.values()]

    def __len__(self) -> int:
        return len(self._found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Second:
    """One second, or the time since the last sample. Rates are tokens per second; times are None without events."""

    at: int
    """Unix time."""
    output_tok_s: float
    prompt_tok_s: float
    """Prompt tokens computed, without cached ones."""
    ttft_s: float | None
    """Mean time to first token."""
    max_ttft_s: float | None
    itl_s: float | None
    max_itl_s: float | None


class Recent:
    """The last KEPT_S seconds of one model. Call `sample` about once a second."""

    def __init__(self, measures: Measures) -> None:
        self._measures = measures
        self._seconds: deque[Second] = deque(maxlen=KEPT_S)
        self._at: float | None = None
        self._num_output = self._num_computed = 0
        self._ttft = _Reading(measures.time_to_first_token_s)
        self._itl = _Reading(measures.inter_token_latency_s)

    def since(self, at: int) -> list[Second]:
        """Return the seconds after `at`, oldest first."""
        return [second for second in self._seconds if second.at > at]

    def sample(self, now: float, num_computed: int) -> None:
        """Record activity since the last call; the first call only sets the base. `now`: Unix time.

        `num_computed`: prompt tokens computed by the engine since its start.
        """
        ttft, max_ttft = self._ttft.take()
        itl, max_itl = self._itl.take()
        num_output = self._measures.num_output_tokens
        took_s = None if self._at is None else now - self._at
        if took_s is not None and took_s > 0:
            self._seconds.append(
                Second(
                    at=int(now),
                    output_tok_s=(num_output - self._num_output) / took_s,
                    # a reloaded engine counts from 0
                    prompt_tok_s=max(num_computed - self._num_computed, 0) / took_s,
                    ttft_s=ttft,
                    max_ttft_s=max_ttft,
                    itl_s=itl,
                    max_itl_s=max_itl,
                )
            )
        self._at, self._num_output, self._num_computed = now, num_output, num_computed


class _Reading:
    """Reader of a histogram's mean and maximum since the last read."""

    __slots__ = ("_count", "_histogram", "_sum")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._count, self._sum = histogram.count, histogram.sum

    def take(self) -> tuple[float | None, float | None]:
        found = self._histogram
        num_new, new = found.count - self._count, found.sum - self._sum
        self._count, self._sum = found.count, found.sum
        longest, found.peak = found.peak, 0.0
        return (new / num_new, longest) if num_new else (None, None)


class RecentActivity:
    """Recent activity of every model. `run` samples it once a second, until cancelled."""

    def __init__(self, registry: ModelRegistry) -> None:
        self.started_at = self.now()
        self._registry = registry
        self._recent = {model.id: Recent(model.measures) for model in registry.list()}

    @staticmethod
    def now() -> float:
        """Unix time."""
        return time.time()

    def of(self, model_id: str) -> Recent:
        return self._recent[model_id]

    def beat(self, now: float) -> None:
        """Sample every model; `now` is Unix time."""
        for model in self._registry.list():
            self._recent[model.id].sample(now, model.engine.stats().prefix_cache.num_computed_tokens)

    async def run(self) -> None:
        """Sample early in every second, so that each second has one sample."""
        while True:
            now = self.now()
            self.beat(now)
            await asyncio.sleep(1.02 - now % 1)
