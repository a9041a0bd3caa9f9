"""Bodies of `/v1/completions` requests and answers: types and bounds, no decisions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainValidator

from server.dialects.openai_prompts import PromptInput, check_prompt
from server.dialects.openai_schema import AnswerModel, CompletionUsage, PublishedPrompt
from server.dialects.openai_shared import MAX_CHOICES, SamplingFields, check_text


class CompletionRequest(SamplingFields):
    prompt: Annotated[PromptInput, PlainValidator(check_prompt, json_schema_input_type=PublishedPrompt)]
    max_tokens: int | None = Field(None, ge=-1)
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)
    echo: bool | None = None
    suffix: Annotated[str, AfterValidator(check_text)] | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None


class Logprobs(AnswerModel):
    """A value per token; the first token of a prompt has no log-probability. `text_offset` counts characters."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class _Choice(AnswerModel):
    index: int
    text: str
    logprobs: Logprobs | None
    prompt_token_ids: list[int] = Field(default_factory=list)
    token_ids: list[int] = Field(default_factory=list)


class CompletionChoice(_Choice):
    """The ids are present if `return_token_ids` requests them."""

    finish_reason: Literal["stop", "length"]


class CompletionChunkChoice(_Choice):
    """A part of a choice. `token_ids` are those since the previous part; `prompt_token_ids` come with the first."""

    finish_reason: Literal["stop", "length"] | None


class _Head(AnswerModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    service_tier: Literal["default", "flex", "priority"] = "default"
    """Present if the request has `service_tier`."""


class Completion(_Head):
    choices: list[CompletionChoice]
    usage: CompletionUsage


class CompletionChunk(_Head):
    """`usage` is present if `stream_options` request it: null except in the last chunk."""

    choices: list[CompletionChunkChoice]
    usage: CompletionUsage | None = None
