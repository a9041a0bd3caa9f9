"""The names of a job's fields on the wire: each dialect says its own in one place, and the service refuses by them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldNames:
    """A dialect's names, for the messages and the `param` of errors. Fields that it has not keep the service's names.

    Where the name depends on the request, as with a grammar that several fields may ask for, it stands by the value.
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
    """The field that asks for the answer in pieces."""
