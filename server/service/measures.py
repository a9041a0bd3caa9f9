"""Measurements of one model's requests: histograms and counters as plain numbers.

Written on the event loop only, so nothing is locked: an observation is a bisection and three additions. Independent
of presentation and of clients.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from mlx_backend.api.interface import PRIORITIES, Priority
from server.service.live import LiveRequests
from server.text.events import EndReason

RequestEnd = EndReason | Literal["aborted", "error"]
"""End of a request; `aborted`: its client disconnected."""

REQUEST_ENDS: tuple[RequestEnd, ...] = ("error", "aborted", "length", "tool_calls", "stop")
"""Order of precedence for a request whose choices ended differently."""

# A long prompt of a model that fills the machine takes half an hour; a short one of a small model, milliseconds.
WAITED_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
# A large model writes 5 to 20 tokens per second, a small one hundreds; beside a prefill there are pauses.
TOKEN_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10, 30)
TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


class Histogram:
    """Histogram with ascending upper `bounds`, and the sum of observations."""

    __slots__ = ("_counts", "bounds", "count", "peak", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self.count = 0
        self.peak = 0.0
        """Largest observation since the reader last reset it."""
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
        self.count += 1
        if value > self.peak:
            self.peak = value

    @property
    def cumulative(self) -> list[int]:
        """Number of observations up to each bound; the last counts all."""
        return list(accumulate(self._counts))


def _waited() -> Histogram:
    return Histogram(WAITED_S)


def _per_token() -> Histogram:
    return Histogram(TOKEN_S)


def _tokens() -> Histogram:
    return Histogram(TOKENS)


@dataclass(slots=True)
class Measures:
    """Measurements of one model. A request is one job, with all its prompts and choices."""

    time_to_first_token_s: Histogram = field(default_factory=_waited)
    """Time from reading the request to its first token."""
    inter_token_latency_s: Histogram = field(default_factory=_per_token)
    """Time between deliveries of tokens to the same request: the pauses that its client sees."""
    time_per_output_token_s: Histogram = field(default_factory=_per_token)
    """Mean time per token after the first, for finished requests with one choice."""
    class_time_to_first_token_s: dict[Priority, Histogram] = field(
        default_factory=lambda: {priority: _waited() for priority in PRIORITIES}
    )
    """Time to first token, by class."""
    queue_time_s: Histogram = field(default_factory=_waited)
    """Time until the scheduler admitted the request's first prompt."""
    e2e_latency_s: Histogram = field(default_factory=_waited)
    """Time to the last token of finished requests."""
    prompt_tokens: Histogram = field(default_factory=_tokens)
    """Prompt tokens of finished requests, over all prompts."""
    output_tokens: Histogram = field(default_factory=_tokens)
    """Output tokens of finished requests, over all choices."""
    num_output_tokens: int = 0
    """Output tokens delivered to requests, finished or not."""
    num_ended: Counter[RequestEnd] = field(default_factory=Counter)
    live: LiveRequests = field(default_factory=LiveRequests)
    """Open requests."""

    def ended(self, end: RequestEnd, num_prompt_tokens: int, num_output_tokens: int, took_s: float) -> None:
        """Record the end of a request; aborted and failed ones are counted without lengths and times."""
        self.num_ended[end] += 1
        if end in ("error", "aborted"):
            return
        self.prompt_tokens.observe(num_prompt_tokens)
        self.output_tokens.observe(num_output_tokens)
        self.e2e_latency_s.observe(took_s)
