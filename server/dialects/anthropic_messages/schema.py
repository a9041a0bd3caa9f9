"""Bodies of `/v1/messages` and its answers. Defines types and bounds; `blocks` reads the contents of blocks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, PlainValidator

from server.dialects.openai_schema import AnswerModel
from server.dialects.openai_shared import MAX_STOPS, WireModel, check_object, check_text

Effort = Literal["low", "medium", "high", "xhigh", "max"]
Text = Annotated[str, AfterValidator(check_text)]


def check_content(value: Any) -> str | list[Any]:
    """Return a text or a list of blocks. Raises ValueError."""
    if isinstance(value, list):
        return value
    if isinstance(value, str):
        return check_text(value)
    raise ValueError("Input should be a string or a list of content blocks")


class TextBlock(BaseModel):
    """A block of text, for the schema."""

    type: Literal["text"]
    text: str


class ThinkingBlock(BaseModel):
    """Reasoning of an earlier answer, for the schema."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(BaseModel):
    """Reasoning that only Anthropic can read, for the schema."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(BaseModel):
    """A call made earlier, for the schema."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolReferenceBlock(BaseModel):
    """Name of a tool found by a search, for the schema."""

    type: Literal["tool_reference"]
    tool_name: str


class ToolResultBlock(BaseModel):
    """The result of a call, for the schema."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock | ToolReferenceBlock] | None = None
    is_error: bool | None = None


Block = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock
Content = Annotated[str | list[Any], PlainValidator(check_content, json_schema_input_type=str | list[Block])]
SystemContent = Annotated[
    str | list[Any] | None,
    PlainValidator(
        lambda value: None if value is None else check_content(value),
        json_schema_input_type=str | list[TextBlock] | None,
    ),
]


class Message(WireModel):
    role: Literal["user", "assistant", "system"]
    content: Content


class Thinking(WireModel):
    """Reasoning mode; `between_tools` and `adaptive` leave it to the model."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = Field(None, ge=1)
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(WireModel):
    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(WireModel):
    effort: Effort | None = None
    format: OutputFormat | None = None


class ToolChoice(WireModel):
    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = None
    disable_parallel_tool_use: bool | None = None


class Edit(WireModel):
    type: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(check_text)]
    keep: Any = None


class ContextManagement(WireModel):
    edits: list[Edit] | None = Field(None, max_length=16)


class Tool(WireModel):
    """A tool of the client, or one of Anthropic's by its `type`."""

    type: Annotated[str, Field(max_length=64), AfterValidator(check_text)] | None = None
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]{1,128}$")
    description: Text | None = None
    input_schema: Annotated[
        dict[str, Any] | None, PlainValidator(check_object, json_schema_input_type=dict[str, Any] | None)
    ] = None
    strict: bool | None = None


StopSequence = Annotated[str, Field(min_length=1), AfterValidator(check_text)]


class PromptFields(WireModel):
    """Fields of the prompt, and those that decide how it is answered. None is the same as absent."""

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    system: SystemContent = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    context_management: ContextManagement | None = None


class CountRequest(PromptFields):
    """The body of `/v1/messages/count_tokens`: a message's body; fields that do not affect the prompt are ignored."""


class MessagesRequest(PromptFields):
    max_tokens: int | None = Field(None, ge=0)
    stop_sequences: list[StopSequence] | None = Field(None, max_length=MAX_STOPS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
    stream: bool | None = None


# --- answers


class AnsweredText(AnswerModel):
    type: Literal["text"]
    text: str


class AnsweredThinking(AnswerModel):
    """`thinking` is empty if hidden; the signature restores it in the next request."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class AnsweredToolUse(AnswerModel):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


AnsweredBlock = AnsweredText | AnsweredThinking | AnsweredToolUse
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class MessageTokensDetails(AnswerModel):
    thinking_tokens: int


class MessageUsage(AnswerModel):
    """The prompt's token count is the sum of the first three."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: MessageTokensDetails | None = None


class AppliedEdits(AnswerModel):
    """Always empty."""

    applied_edits: list[dict[str, Any]] = Field(max_length=0)


class AnsweredMessage(AnswerModel):
    """`context_management` is present if the request has it."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnsweredBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
    context_management: AppliedEdits | None = None


class TextDeltaPart(AnswerModel):
    type: Literal["text_delta"]
    text: str


class ThinkingDeltaPart(AnswerModel):
    type: Literal["thinking_delta"]
    thinking: str


class SignatureDeltaPart(AnswerModel):
    type: Literal["signature_delta"]
    signature: str


class InputDeltaPart(AnswerModel):
    """The complete JSON of a call's input."""

    type: Literal["input_json_delta"]
    partial_json: str


class StopPart(AnswerModel):
    stop_reason: StopReason
    stop_sequence: str | None


class StreamEvent(AnswerModel):
    """One event of a stream; its name is its type."""

    type: Literal[
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    message: AnsweredMessage | None = None
    index: int | None = None
    content_block: AnsweredBlock | None = None
    delta: TextDeltaPart | ThinkingDeltaPart | SignatureDeltaPart | InputDeltaPart | StopPart | None = None
    usage: MessageUsage | None = None
    context_management: AppliedEdits | None = None


class TokenCount(AnswerModel):
    input_tokens: int


class MessagesErrorDetail(AnswerModel):
    type: str
    message: str


class MessagesError(AnswerModel):
    """The body of every failure under `/v1/messages`, and the data of a stream's `error` event."""

    type: Literal["error"]
    error: MessagesErrorDetail
    request_id: str | None
