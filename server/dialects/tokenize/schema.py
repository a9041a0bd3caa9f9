"""Bodies of `/tokenize` and `/detokenize`, in vLLM's shapes. Defines the wire's types and bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, PlainValidator

from server.dialects.openai_shared import TokenId, WireModel, check_text

MAX_TOKENS = 2**20


_EITHER: list[JsonValue] = [
    {"required": [given], "properties": {given: {"not": {"type": "null"}}, other: {"type": "null"}}}
    for given, other in (("prompt", "messages"), ("messages", "prompt"))
]


class TokenizeTextPart(BaseModel):
    """One part of a message's content, for the schema."""

    type: Literal["text"]
    text: str


def check_content(value: Any) -> str | None:
    """Return the text of a content: a string, text parts joined, or nothing. Raises ValueError."""
    if value is None:
        return None
    if not isinstance(value, list):
        return check_text(value)
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in value):
        raise ValueError("every part should be an object of the type 'text'")
    return "".join(check_text(part.get("text")) for part in value)


class TokenizeMessage(WireModel):
    """One message; other fields are passed to the chat template unchanged."""

    role: Annotated[str, AfterValidator(check_text)] = Field(min_length=1, max_length=64)
    content: Annotated[
        str | None, PlainValidator(check_content, json_schema_input_type=str | list[TokenizeTextPart] | None)
    ] = None


class TokenizeRequest(WireModel):
    """Either a prompt or messages."""

    model_config = ConfigDict(json_schema_extra={"oneOf": _EITHER})

    model: str | None = None
    prompt: Annotated[str, AfterValidator(check_text)] | None = None
    messages: list[TokenizeMessage] | None = Field(None, min_length=1)
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    return_token_strs: bool | None = None


class TokenizeAnswer(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(WireModel):
    model: str | None = None
    tokens: list[TokenId] = Field(max_length=MAX_TOKENS)


class DetokenizeAnswer(BaseModel):
    prompt: str
