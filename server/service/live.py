"""What goes on now: the requests that are open, and the last minutes of what was measured, second by second.

Read and written on the event loop alone. Counters and progress; knows nothing of what is asked or answered.
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
"""So many seconds are kept."""

LiveState = Literal["waiting", "reading", "writing"]
"""`waiting`: nobody has begun; `reading`: the prompt is being computed; `writing`: tokens have come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRequest:
    """How far one open request is, over all its prompts and choices."""

    request_id: str
    kind: Literal["generation", "embedding", "scoring"]
    state: LiveState
    started_at: float
    """By `time.perf_counter`."""
    num_prompt_tokens: int
    num_computed_tokens: int
    """Of the prompts, those that were known included."""
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    max_output_tokens: int | None = None
    """None: as many as there is room for."""


Describe = Callable[[], LiveRequest]


class LiveRequests:
    """The open requests of one model, oldest first."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: dict[object, Describe] = {}

    def add(self, describe: Describe) -> Callable[[], None]:
        """Show a request, by what it says of itself when asked; the way to take it away again. Idempotent."""
        place = object()
        self._found[place] = describe
        return lambda: self._found.pop(place, None) and None

    def list(self) -> list[LiveRequest]:
        return [describe() for describe in self._found.values()]

    def __len__(self) -> int:
        return len(self._found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Second:
    """One second, or what went by since the last. Rates are tokens per second; times are None where nothing came."""

    at: int
    """Unix time."""
    output_tok_s: float
    prompt_tok_s: float
    """Prompt tokens computed; what was known is not among them."""
    ttft_s: float | None
    """Mean of the first tokens that came."""
    max_ttft_s: float | None
    itl_s: float | None
    max_itl_s: float | None


class Recent:
    """The last KEPT_S seconds of one model. `sample` is to be called about once a second."""

    def __init__(self, measures: Measures) -> None:
        self._measures = measures
        self._seconds: deque[Second] = deque(maxlen=KEPT_S)
        self._at: float | None = None
        self._num_output = self._num_computed = 0
        self._ttft = _Reading(measures.time_to_first_token_s)
        self._itl = _Reading(measures.inter_token_latency_s)

    def since(self, at: int) -> list[Second]:
        """The seconds after `at`, oldest first."""
        return [second for second in self._seconds if second.at > at]

    def sample(self, now: float, num_computed: int) -> None:
        """Note what came since the last call, which the first does not. `now`: Unix time.

        `num_computed`: prompt tokens that the engine has computed in its life.
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
                    # an engine that was loaded again counts anew
                    prompt_tok_s=max(num_computed - self._num_computed, 0) / took_s,
                    ttft_s=ttft,
                    max_ttft_s=max_ttft,
                    itl_s=itl,
                    max_itl_s=max_itl,
                )
            )
        self._at, self._num_output, self._num_computed = now, num_output, num_computed


class _Reading:
    """Takes from a histogram what came since the last time: the mean, and the longest."""

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
    """The recent past of every model. `run` feels it once a second, until it is cancelled."""

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
        """Beat early in every second, so that each is one sample."""
        while True:
            now = self.now()
            self.beat(now)
            await asyncio.sleep(1.02 - now % 1)
