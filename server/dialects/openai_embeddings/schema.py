"""Body of `/v1/embeddings`, and its answer. Defines the wire's types and bounds; decides nothing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainValidator

from server.dialects.openai_prompts import PromptInput, check_prompt
from server.dialects.openai_schema import AnswerModel, PublishedPrompt
from server.dialects.openai_shared import CacheSalt, PriorityField, WireModel


class EmbeddingRequest(WireModel):
    input: Annotated[PromptInput, PlainValidator(check_prompt, json_schema_input_type=PublishedPrompt)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    cache_salt: CacheSalt | None = None
    prefix_cache: bool | None = None
    user: str | None = None
    priority: PriorityField = None


class Embedding(AnswerModel):
    """One vector: numbers, or with `base64` their little-endian float32 bytes."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(AnswerModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(AnswerModel):
    """The vectors, in the order of the inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
