"""What the log and the usage say of one job: counters, times, how it ended.

Knows nothing of tokens or text. Owned by the job's output stream.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from server.text.events import Finished, Usage

logger = logging.getLogger("pippin.request")


@dataclass(slots=True)
class JobRecord:
    """One job so far. Times are of `time.perf_counter`."""

    request_id: str
    model_id: str
    num_prompt_tokens: int
    started_at: float
    num_truncated_tokens: int = 0
    num_output_tokens: int = 0
    finished: list[Finished] = field(default_factory=list)
    error: BaseException | None = None
    _num_first_tokens: int = 0
    _first_at: float = 0.0
    _last_at: float = 0.0

    def tick(self) -> None:
        """Tokens have come; `num_output_tokens` does not count them yet."""
        now = time.perf_counter()
        if not self._first_at:
            self._first_at = now
        elif not self._num_first_tokens:
            self._num_first_tokens = self.num_output_tokens
        self._last_at = now

    def usage(self, num_cached_tokens: int) -> Usage:
        """Of a finished job."""
        num_output_tokens = sum(event.num_output_tokens for event in self.finished)
        counted = [event.num_reasoning_tokens for event in self.finished if event.num_reasoning_tokens is not None]
        return Usage(
            self.num_prompt_tokens,
            num_cached_tokens,
            num_output_tokens,
            self.num_truncated_tokens,
            sum(counted) if counted else None,
        )

    def write(self, num_cached_tokens: int, is_done: bool) -> None:
        """The job's line in the log."""
        level = logging.WARNING if self.error is not None else logging.INFO
        logger.log(
            level,
            "%s model=%s prompt=%d%s cached=%d output=%d ttft=%s tok/s=%s finish=%s",
            self.request_id,
            self.model_id,
            self.num_prompt_tokens,
            f" truncated={self.num_truncated_tokens}" if self.num_truncated_tokens else "",
            num_cached_tokens,
            self.num_output_tokens,
            f"{self._first_at - self.started_at:.3f}s" if self._first_at else "-",
            self._speed(),
            self._how_it_ended(is_done),
        )

    def _speed(self) -> str:
        """Output tokens per second after the first ones, over all choices."""
        took_s = self._last_at - self._first_at
        if took_s <= 0:
            return "-"
        return f"{(self.num_output_tokens - self._num_first_tokens) / took_s:.1f}"

    def _how_it_ended(self, is_done: bool) -> str:
        if self.error is not None:
            return f"failed ({type(self.error).__name__}: {self.error})"
        if not is_done:
            return "aborted"
        return ",".join(event.reason for event in sorted(self.finished, key=lambda event: event.index))
