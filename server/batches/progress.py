"""Progress of a batch: lines, tokens, the rate of the last minute, and the remaining time."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_WINDOW_S = 60.0
_STEP_S = 0.5


@dataclass(slots=True)
class Tokens:
    """Tokens of answers."""

    prompt: int = 0
    cached: int = 0
    output: int = 0

    def add(self, usage: Any) -> None:
        """Add the tokens of an answer's `usage`, in the form of any API."""
        if not isinstance(usage, Mapping):
            return
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        cached = _number(details, "cached_tokens") + _number(usage, "cache_read_input_tokens")
        # Anthropic's input_tokens exclude the cached ones
        beside = _number(usage, "cache_read_input_tokens") + _number(usage, "cache_creation_input_tokens")
        self.prompt += _number(usage, "prompt_tokens") + _number(usage, "input_tokens") + beside
        self.cached += cached
        self.output += _number(usage, "completion_tokens") + _number(usage, "output_tokens")


@dataclass(slots=True)
class Progress:
    """Counts of one run. Lines of earlier runs count as done, but not for the rate."""

    num_lines: int
    num_done: int = 0
    num_failed: int = 0
    tokens: Tokens = field(default_factory=Tokens)
    waits_for: str = ""
    """Why the run waits for the server; empty while it answers."""
    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def begin(self, now: float) -> None:
        """Set the time from which lines are counted."""
        self._samples.clear()
        self._samples.append((now, self.num_done))

    def add(self, now: float, *, is_success: bool, usage: Any = None) -> None:
        """Count an answer."""
        self.num_done += 1
        self.waits_for = ""
        self.num_failed += not is_success
        self.tokens.add(usage)
        if self._samples and now - self._samples[-1][0] < _STEP_S and len(self._samples) > 1:
            self._samples[-1] = (self._samples[-1][0], self.num_done)
        else:
            self._samples.append((now, self.num_done))
        while len(self._samples) > 2 and now - self._samples[1][0] > _WINDOW_S:
            self._samples.popleft()

    @property
    def num_left(self) -> int:
        return max(0, self.num_lines - self.num_done)

    def rate(self, now: float) -> float:
        """Return lines per second over the last minute."""
        if not self._samples or now <= self._samples[0][0]:
            return 0.0
        since, num_before = self._samples[0]
        return (self.num_done - num_before) / (now - since)

    def left_s(self, now: float) -> float | None:
        """Return the remaining seconds at this rate; None without a rate."""
        rate = self.rate(now)
        return self.num_left / rate if rate > 0 else (0.0 if self.num_left == 0 else None)


def duration(seconds: float) -> str:
    """Return a duration in two units: `42 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _number(fields: Any, name: str) -> int:
    value = fields.get(name) if isinstance(fields, Mapping) else None
    return value if isinstance(value, int) else 0
