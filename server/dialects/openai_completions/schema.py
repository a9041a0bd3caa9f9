"""The body of `/v1/completions`. Knows the wire's types and bounds; decides nothing."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator

from server.dialects.openai_shared import MAX_CHOICES, SamplingFields, check_text

PromptInput = str | list[str] | list[int] | list[list[int]]


def check_prompt(value: Any) -> PromptInput:
    """One of the four forms, none empty. Raises ValueError."""
    if isinstance(value, str):
        return check_text(value)
    if not isinstance(value, list):
        raise ValueError("Input should be a string, a list of strings, a list of token ids or a list of such lists")
    if not value:
        raise ValueError("the list must not be empty")
    if all(isinstance(item, str) for item in value):
        return [check_text(item) for item in value]
    if _are_ids(value) or all(isinstance(item, list) and _are_ids(item) for item in value):
        return value
    raise ValueError("the list must hold strings, or token ids, or lists of token ids, and one kind only")


def _are_ids(items: list[Any]) -> bool:
    return all(type(item) is int for item in items)  # a bool is no token id


class CompletionRequest(SamplingFields):
    prompt: Annotated[PromptInput, PlainValidator(check_prompt, json_schema_input_type=PromptInput)]
    max_tokens: int | None = Field(None, ge=0)
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)
    echo: bool | None = None
    suffix: Annotated[str, AfterValidator(check_text)] | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
