"""The body of `/v1/chat/completions`, text only. Knows the wire's types and bounds; decides nothing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainValidator

from server.dialects.openai_shared import SamplingFields, WireModel, check_text


class TextPart(BaseModel):
    """One part of a message's content, for the schema; `check_content` is what checks it."""

    type: Literal["text"]
    text: str


def check_content(value: Any) -> str:
    """The text of a content: a string, or text parts put together. Raises ValueError."""
    if not isinstance(value, list):
        return check_text(value)
    if not value:
        raise ValueError("the list of parts must not be empty")
    return "".join(_check_part(position, part) for position, part in enumerate(value))


def _check_part(position: int, part: Any) -> str:
    if not isinstance(part, dict):
        raise ValueError(f"part {position} should be an object")
    if part.get("type") != "text":
        raise ValueError(f"part {position} has the type {str(part.get('type'))[:40]!r}; only 'text' is supported")
    return check_text(part.get("text"))


class Message(WireModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, PlainValidator(check_content, json_schema_input_type=str | list[TextPart])]
    name: str | None = None
    tool_call_id: str | None = None


class ChatRequest(SamplingFields):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    chat_template_kwargs: dict[str, Any] | None = None
