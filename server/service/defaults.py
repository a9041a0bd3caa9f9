"""Application of a model's defaults to the fields that a request leaves unset. Shared by all APIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlx_backend.api.interface import SamplingParams
from server.request_defaults import RequestDefaults
from server.service.job import ChatPrompt, GenerationJob

NO_DEFAULTS = RequestDefaults()
_SYSTEM_ROLES = ("system", "developer")


def with_defaults(job: GenerationJob, defaults: RequestDefaults) -> GenerationJob:
    """Return the job with its model's defaults for the fields that the request does not set."""
    if defaults == NO_DEFAULTS:
        return job
    changes: dict[str, Any] = {"sampling": with_sampling(job.sampling, job.given, defaults)}
    if "stop" not in job.given and defaults.stop:
        changes["stop"] = defaults.stop
    if "max_tokens" not in job.given and defaults.max_tokens is not None:
        changes["default_max_tokens"] = defaults.max_tokens
    changes["prompts"] = tuple(
        replace(prompt, messages=with_messages(prompt.messages, defaults)) if isinstance(prompt, ChatPrompt) else prompt
        for prompt in job.prompts
    )
    return replace(job, **changes)


def with_sampling(sampling: SamplingParams, given: frozenset[str], defaults: RequestDefaults) -> SamplingParams:
    """Return the sampling with defaults for the fields that are not `given`."""
    changes: dict[str, Any] = {name: value for name, value in defaults.sampling.items() if name not in given}
    return replace(sampling, **changes)


def with_messages(messages: Sequence[Mapping[str, Any]], defaults: RequestDefaults) -> tuple[Mapping[str, Any], ...]:
    """Return the messages with the default system prompt, if they have none, and the default messages."""
    first = next((place for place, each in enumerate(messages) if each.get("role") not in _SYSTEM_ROLES), len(messages))
    has_system = any(each.get("role") in _SYSTEM_ROLES for each in messages)
    system = () if has_system or defaults.system is None else ({"role": "system", "content": defaults.system},)
    return (*system, *messages[:first], *defaults.messages, *messages[first:])
