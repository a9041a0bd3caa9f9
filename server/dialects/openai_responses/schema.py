"""Bodies of `/v1/responses` and its answers, text only. Defines types and bounds; decides nothing.

Items and tools are objects here: `items` and `tools` validate them, so that an error names the place within one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator

from server.dialects.openai_schema import AnswerModel
from server.dialects.openai_shared import SamplingFields, WireModel, check_object, check_text

Objects = list[dict[str, Any]]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Summary = Literal["auto", "concise", "detailed"]
Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
Text = Annotated[str, AfterValidator(check_text)]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


def check_input(value: Any) -> str | Objects | None:
    """Return a text, or a list of objects. Raises ValueError."""
    if value is None or isinstance(value, str):
        return None if value is None else check_text(value)
    if not isinstance(value, list):
        raise ValueError("Input should be a string or a list of items")
    for position, item in enumerate(value):
        if not isinstance(item, dict):
            raise ValueError(f"item {position} should be an object")
    return value


def check_choice(value: Any) -> str | dict[str, Any] | None:
    """Return one of three words, or an object. Raises ValueError."""
    if value is None or isinstance(value, dict):
        return value
    if value in ("none", "auto", "required"):
        return str(value)
    raise ValueError("Input should be 'none', 'auto', 'required' or an object")


class TextOptions(WireModel):
    """Format of the answer's text."""

    format: Annotated[
        dict[str, Any] | None, PlainValidator(check_object, json_schema_input_type=dict[str, Any] | None)
    ] = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(WireModel):
    """Reasoning effort, and whether reasoning is shown as a summary."""

    effort: Effort | None = None
    summary: Summary | None = None
    generate_summary: Summary | None = None


class ResponsesRequest(SamplingFields):
    input: Annotated[str | Objects | None, PlainValidator(check_input, json_schema_input_type=str | Objects | None)] = (
        None
    )
    instructions: Text | None = None
    previous_response_id: Annotated[Text, Field(max_length=256)] | None = None
    tools: Objects | None = None
    tool_choice: Annotated[
        str | dict[str, Any] | None,
        PlainValidator(
            check_choice, json_schema_input_type=Literal["none", "auto", "required"] | dict[str, Any] | None
        ),
    ] = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: list[Includable] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    max_output_tokens: int | None = Field(None, ge=1)
    max_tool_calls: int | None = Field(None, ge=1)
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    store: bool | None = None
    background: bool | None = None
    prompt_cache_key: Text | None = None
    safety_identifier: Text | None = None


class InputTokensDetails(AnswerModel):
    """`cache_write_tokens` is 0: caching has no cost here."""

    cached_tokens: int
    cache_write_tokens: int
    truncated_tokens: int = 0


class OutputTokensDetails(AnswerModel):
    reasoning_tokens: int


class ResponseUsage(AnswerModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class FailureDetail(AnswerModel):
    code: str
    message: str


class IncompleteDetails(AnswerModel):
    reason: Literal["max_output_tokens"]


class ResponseObject(AnswerModel):
    """An answer. `output` contains messages, calls of functions and custom tools, and reasoning."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    completed_at: int | None
    error: FailureDetail | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: Objects
    usage: ResponseUsage | None
    background: bool
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: Objects
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    user: str | None


class ResponseEvent(WireModel):
    """One event of a stream; the other fields are those of OpenAI's reference for the type."""

    type: str
    sequence_number: int


class DeletedResponse(AnswerModel):
    id: str
    object: Literal["response.deleted"] = "response.deleted"
    deleted: Literal[True] = True


class InputItems(AnswerModel):
    """A page of the model's input items, the last first by default."""

    object: Literal["list"] = "list"
    data: Objects
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokens(AnswerModel):
    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int
