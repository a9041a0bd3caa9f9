"""Results of a measurement: figures, checks against bounds, and comparisons with our models. Pure; no MLX."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_backend.planning.speed import Estimate

MOST_PEAK = 1.05
"""Highest measured over predicted memory: above it, admission would accept what does not fit."""
LEAST_PEAK = 0.5
"""Lowest measured over predicted memory: below it, the model reserves memory that nothing uses."""
UNMODELLED_BYTES = 64_000_000
"""Small buffers that no formula counts: the reserve covers them, and on a small model they dominate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Parameters of a step, as the command sends them."""

    model: str
    is_quick: bool = True
    contexts: tuple[int, ...] = (256, 1024)
    steps: tuple[int, ...] = (256,)
    idles_s: tuple[float, ...] = (0.0,)
    batches: tuple[int, ...] = (1, 2)
    num_tokens: int = 16
    """Tokens to decode in each measurement."""
    soak_s: float = 0.0
    wired: str = "auto"

    @classmethod
    def read(cls, sent: Mapping[str, Any]) -> Options:
        """Return the options from JSON. Raises TypeError for an unknown option."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in sent.items()
        }
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A figure and its bounds; None: no bound on that side."""

    name: str
    measured: float
    low: float | None = None
    high: float | None = None
    unit: str = ""
    predicted: float | None = None
    """Prediction of our model, if the bounds surround it."""

    @property
    def is_kept(self) -> bool:
        above = self.low is None or self.measured >= self.low
        return above and (self.high is None or self.measured <= self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a step. `skipped`: why nothing was measured."""

    figures: Mapping[str, Any] = field(default_factory=dict)
    checks: Sequence[Check] = ()
    skipped: str | None = None

    def to_json(self) -> dict[str, Any]:
        written = [
            {name: getattr(check, name) for name in ("name", "measured", "low", "high", "unit", "predicted")}
            | {"is_kept": check.is_kept}
            for check in self.checks
        ]
        return {"figures": dict(self.figures), "checks": written, "skipped": self.skipped}


def check_peak(name: str, measured_bytes: int, predicted_bytes: int) -> Check:
    """Check peak memory against the memory model that admission uses."""
    low, high = LEAST_PEAK * predicted_bytes - UNMODELLED_BYTES, MOST_PEAK * predicted_bytes + UNMODELLED_BYTES
    return Check(name=name, measured=measured_bytes, low=low, high=high, unit="bytes", predicted=predicted_bytes)


def check_speed(name: str, measured: float, estimate: Estimate | None) -> list[Check]:
    """Check tokens per second against the planner's range; no check if the machine's speed is unknown."""
    if estimate is None:
        return []
    return [
        Check(
            name=name,
            measured=measured,
            low=estimate.low,
            high=estimate.high,
            unit="tok/s",
            predicted=estimate.value,
        )
    ]


def describe_times(seconds: Sequence[float]) -> dict[str, float]:
    """Return first, median and longest of some durations, in milliseconds."""
    return {
        "first_ms": 1000 * seconds[0],
        "median_ms": 1000 * statistics.median(seconds),
        "most_ms": 1000 * max(seconds),
    }


def divergence(reference: Sequence[int], tokens: Sequence[int]) -> int | None:
    """Return the first place at which two outputs differ; None if they are equal."""
    for place, (one, other) in enumerate(zip(reference, tokens, strict=False)):
        if one != other:
            return place
    return None if len(reference) == len(tokens) else min(len(reference), len(tokens))
