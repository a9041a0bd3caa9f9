"""Wire names of a job's fields, defined by each dialect and used by the service's errors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldNames:
    """A dialect's field names for error messages and `param`. Fields that it lacks keep the service's names.

    A name that depends on the request, such as a grammar's, is stored with the value.
    """

    prompt: str
    suffix: str = "suffix"
    tools: str = "tools"
    must_call: str = "must_call"
    thinking_budget: str = "thinking_budget"
    min_tokens: str = "min_tokens"
    stop_token_ids: str = "stop_token_ids"
    allowed_token_ids: str = "allowed_token_ids"
    logit_bias: str = "logit_bias"
    num_logprobs: str = "num_logprobs"
    prediction: str = "prediction"
    stream: str = "stream"
    """Field that enables streaming."""
