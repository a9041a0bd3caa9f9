"""Cost record of a job for log, usage and metrics: counters, times and its end.

Independent of tokens and text. Owned by the job's output stream.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from mlx_backend.api.errors import EngineError
from mlx_backend.api.interface import DraftedTokens, Priority
from server.logs import prompt_log, shows_prompts
from server.security.rate import RateGrant
from server.security.tenant import Tenant
from server.service.measures import REQUEST_ENDS, Measures, RequestEnd
from server.service.timings import JobTimings
from server.text.events import Finished, Usage

logger = logging.getLogger("pippin.request")


def describe_failure(error: BaseException) -> str:
    """Describe an error for the log: an engine's with its message, any other, which may quote the request, by class."""
    what = f": {error}" if isinstance(error, EngineError) else ""
    return f"failed ({type(error).__name__}{what})"


def log_prompts(request_id: str, prompts: Iterable[Any]) -> None:
    """Log a job's prompts, if configured. `prompts`: dataclasses."""
    if shows_prompts():
        asked = [asdict(prompt) for prompt in prompts]
        written = json.dumps(asked, ensure_ascii=False, default=str)
        prompt_log.info("%s asks %s", request_id, written, extra={"fields": {"id": request_id, "prompts": asked}})


@dataclass(slots=True)
class JobRecord:
    """Record of one job so far. Times are those of `time.perf_counter`."""

    request_id: str
    model_id: str
    num_prompt_tokens: int
    started_at: float
    num_truncated_tokens: int = 0
    num_output_tokens: int = 0
    measures: Measures = field(default_factory=Measures)
    """Measures of the model, updated as the job proceeds."""
    num_choices: int = 1
    has_prediction: bool = False
    """Whether the client sent a prediction."""
    drafted: DraftedTokens = field(default_factory=DraftedTokens)
    """Drafted and verified tokens; set at the end."""
    tenant: Tenant = field(default_factory=Tenant)
    rate_grant: RateGrant = field(default_factory=lambda: RateGrant(None, 0))
    """Tokens taken from the tenant's account."""
    priority: Priority = "normal"
    is_begun: bool = False
    finished: list[Finished] = field(default_factory=list)
    error: BaseException | None = None
    _num_first_tokens: int = 0
    _first_at: float = 0.0
    _last_at: float = 0.0
    _num_counted: int = 0

    def begin(self, queue_time_s: float | None) -> None:
        """Record the start of the answer."""
        self.is_begun = True
        if queue_time_s is not None:
            self.measures.queue_time_s.observe(queue_time_s)

    def tick(self) -> None:
        """Record the arrival of tokens, which `num_output_tokens` does not count yet."""
        now = time.perf_counter()
        if not self._first_at:
            self._first_at = now
            self.measures.time_to_first_token_s.observe(now - self.started_at)
            self.measures.class_time_to_first_token_s[self.priority].observe(now - self.started_at)
        else:
            if not self._num_first_tokens:
                self._num_first_tokens = self.num_output_tokens
            self.measures.inter_token_latency_s.observe(now - self._last_at)
            self._count_output()
        self.rate_grant.use(self.num_prompt_tokens + self.num_output_tokens)
        self._last_at = now

    def add_to_measures(self, is_done: bool) -> None:
        """Add the end of the job to the model's measures. Call it once."""
        self._count_output()
        self.rate_grant.settle(self.num_prompt_tokens + self.num_output_tokens)
        took_s = (self._last_at or time.perf_counter()) - self.started_at
        self.measures.ended(self._end(is_done), self.num_prompt_tokens, self.num_output_tokens, took_s)
        speed = self.tok_s
        if is_done and self.num_choices == 1 and speed:
            self.measures.time_per_output_token_s.observe(1 / speed)

    def _count_output(self) -> None:
        self.measures.num_output_tokens += self.num_output_tokens - self._num_counted
        self._num_counted = self.num_output_tokens

    def _end(self, is_done: bool) -> RequestEnd:
        if self.error is not None:
            return "error"
        if not is_done:
            return "aborted"
        reasons = {event.reason for event in self.finished}
        return next(end for end in REQUEST_ENDS if end in reasons)

    def usage(self, num_cached_tokens: int) -> Usage:
        """Return the usage of a finished job."""
        num_output_tokens = sum(event.num_output_tokens for event in self.finished)
        counted = [event.num_reasoning_tokens for event in self.finished if event.num_reasoning_tokens is not None]
        return Usage(
            self.num_prompt_tokens,
            num_cached_tokens,
            num_output_tokens,
            self.num_truncated_tokens,
            sum(counted) if counted else None,
            self.drafted.num_predicted_accepted if self.has_prediction else None,
            self.drafted.num_predicted - self.drafted.num_predicted_accepted if self.has_prediction else None,
        )

    def timings(self, load_s: float, queue_time_s: float | None) -> JobTimings:
        """Return the durations of the parts so far; `load_s` and `queue_time_s`: before the prompt was computed."""
        now = time.perf_counter()
        begun_at = self.started_at + load_s + (queue_time_s or 0.0)
        first_at, last_at = self._first_at or now, self._last_at or now
        return JobTimings(now - self.started_at, load_s, max(0.0, first_at - begun_at), last_at - first_at)

    def write(self, num_cached_tokens: int, is_done: bool) -> None:
        """Write the job's log line."""
        level = logging.WARNING if self.error is not None else logging.INFO
        logger.log(
            level,
            "%s model=%s%s%s prompt=%d%s cached=%d output=%d%s ttft=%s tok/s=%s finish=%s",
            self.request_id,
            self.model_id,
            self.tenant.mark,
            "" if self.priority == "normal" else f" class={self.priority}",
            self.num_prompt_tokens,
            f" truncated={self.num_truncated_tokens}" if self.num_truncated_tokens else "",
            num_cached_tokens,
            self.num_output_tokens,
            f" accepted={self.drafted.num_accepted}/{self.drafted.num_drafted}" if self.drafted.num_drafted else "",
            f"{self._first_at - self.started_at:.3f}s" if self._first_at else "-",
            "-" if self.tok_s is None else f"{self.tok_s:.1f}",
            self._how_it_ended(is_done),
            extra={"fields": self._fields(num_cached_tokens, is_done)},
        )

    def _fields(self, num_cached_tokens: int, is_done: bool) -> dict[str, Any]:
        """Return the same in machine-readable form."""
        speed = self.tok_s
        return {
            "request_id": self.request_id,
            "id": self.request_id,
            "model": self.model_id,
            **self.tenant.fields,
            **({} if self.priority == "normal" else {"priority": self.priority}),
            "prompt_tokens": self.num_prompt_tokens,
            "truncated_tokens": self.num_truncated_tokens,
            "cached_tokens": num_cached_tokens,
            "output_tokens": self.num_output_tokens,
            "drafted_tokens": self.drafted.num_drafted,
            "accepted_tokens": self.drafted.num_accepted,
            "ttft_s": round(self._first_at - self.started_at, 6) if self._first_at else None,
            "tok_s": None if speed is None else round(speed, 2),
            "finish": self._how_it_ended(is_done),
        }

    @property
    def tok_s(self) -> float | None:
        """Output tokens per second after the first ones, over all choices; None if there are none."""
        took_s = self._last_at - self._first_at
        return (self.num_output_tokens - self._num_first_tokens) / took_s if took_s > 0 else None

    def _how_it_ended(self, is_done: bool) -> str:
        if self.error is not None:
            return describe_failure(self.error)
        if not is_done:
            return "aborted"
        return ",".join(event.reason for event in sorted(self.finished, key=lambda event: event.index))
