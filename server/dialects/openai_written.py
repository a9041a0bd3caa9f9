"""Parts that OpenAI's answers repeat, as JSON: heads, usage, numbers and quoted texts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any

from server.service.transcript import Transcript
from server.text.events import Usage

LEAST_LOGPROB = -9999.0
"""Replaces minus infinity, which JSON cannot represent."""


@dataclass(frozen=True, slots=True)
class Head:
    """Fields that every object of an answer repeats, and the transcript if the job keeps one."""

    id: str
    created: int
    model: str
    transcript: Transcript | None = None
    service_tier: str | None = None
    """OpenAI's name of the request's class, if the request named one."""

    @property
    def tier(self) -> str:
        """Field with the service tier, as JSON to append to others; empty if the request named none."""
        return "" if self.service_tier is None else f',"service_tier":{quote(self.service_tier)}'


def encode_usage(usage: Usage) -> dict[str, Any]:
    details = {"cached_tokens": usage.num_cached_tokens}
    if usage.num_truncated_tokens:
        details["truncated_tokens"] = usage.num_truncated_tokens
    written: dict[str, Any] = {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_output_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_output_tokens,
        "prompt_tokens_details": details,
    }
    of_completion = {
        "reasoning_tokens": usage.num_reasoning_tokens,
        "accepted_prediction_tokens": usage.num_accepted_prediction_tokens,
        "rejected_prediction_tokens": usage.num_rejected_prediction_tokens,
    }
    if any(number is not None for number in of_completion.values()):
        written["completion_tokens_details"] = {n: number for n, number in of_completion.items() if number is not None}
    return written


def finite(logprob: float) -> float:
    """Return `logprob`, or LEAST_LOGPROB if it is lower or NaN."""
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB


quote = encode_basestring
"""Quote a string as JSON without needless escapes. Text of a detokenizer has no lone surrogates."""


def dump(value: Any) -> str:
    """Return compact JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
