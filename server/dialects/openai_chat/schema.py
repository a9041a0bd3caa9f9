"""Bodies of `/v1/chat/completions` requests and answers, text only: types and bounds, no decisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainValidator,
    ValidationInfo,
    field_validator,
)

from server.dialects.openai_calls import check_parameters
from server.dialects.openai_chat.thinking_checks import check_reasoning, check_think, check_thinking
from server.dialects.openai_schema import AnswerModel, CompletionUsage
from server.dialects.openai_shared import MaxTokens, SamplingFields, WireModel, check_text


class TextPart(BaseModel):
    """One part of a message's content, for the schema only; `check_content` validates it."""

    type: Literal["text"]
    text: str


def check_content(value: Any) -> str:
    """Return the text of a content: a string, or the joined text parts. Raises ValueError."""
    if not isinstance(value, list):
        return check_text(value)
    return "".join(_check_part(position, part) for position, part in enumerate(value))


def _check_part(position: int, part: Any) -> str:
    if not isinstance(part, dict):
        raise ValueError(f"part {position} should be an object")
    if part.get("type") != "text":
        raise ValueError(f"part {position} has the type {str(part.get('type'))[:40]!r}; only 'text' is supported")
    return check_text(part.get("text"))


_NONE: JsonValue = {"type": "null"}
_IN_PLACE_OF_CONTENT: Mapping[str, JsonValue] = {
    "tool_calls": {"type": "array", "minItems": 1},
    "function_call": {"type": "object"},
    "reasoning_content": {"type": "string", "minLength": 1},
    "reasoning": {"type": "string", "minLength": 1},
}


def check_message_content(value: Any, info: ValidationInfo) -> str | None:
    """Return the text of a message; None if an assistant message has calls or reasoning instead. Raises ValueError."""
    known = info.data
    if value is None and known.get("role") == "assistant" and any(map(known.get, _IN_PLACE_OF_CONTENT)):
        return None
    if value is None and (known.get("role") in ("tool", "function") or known.get("tool_calls") == []):
        return ""  # a tool without output, or an answer with neither text nor calls
    if value == [] and known.get("role") not in ("tool", "function", "assistant"):
        raise ValueError("the list of parts must not be empty")
    return check_content(value)


class FunctionCall(WireModel):
    """A call made earlier. Its arguments are an object, or the JSON of one."""

    name: Annotated[str, Field(min_length=1), AfterValidator(check_text)]
    arguments: str | dict[str, Any] = ""


class ToolCall(WireModel):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


def _by_assistant(name: str, form: JsonValue) -> JsonValue:
    return {"required": [name], "properties": {name: form, "role": {"const": "assistant"}}}


_SAID: JsonValue = {"not": {"type": "null"}}
_MESSAGE_FORMS: list[JsonValue] = [
    {"required": ["content"], "properties": {"content": _SAID, "tool_calls": _NONE, "function_call": _NONE}},
    _by_assistant("content", _SAID),
    *(_by_assistant(name, form) for name, form in _IN_PLACE_OF_CONTENT.items()),
]
"""For the schema: a message has content; an assistant may add calls and reasoning, or send them instead."""


class Message(WireModel):
    model_config = ConfigDict(json_schema_extra={"anyOf": _MESSAGE_FORMS})

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    prefix: bool | None = Field(None, validation_alias=AliasChoices("prefix", "partial"))
    # after the fields that may replace it
    content: Annotated[
        str | None,
        PlainValidator(
            check_message_content, json_schema_input_type=str | Annotated[list[TextPart], Field(min_length=1)] | None
        ),
    ] = Field(None, validate_default=True)

    @field_validator("tool_calls", "function_call")
    @classmethod
    def _check_caller(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("role", "assistant") != "assistant":
            raise ValueError("only an assistant's message has calls")
        return value


class FunctionTool(WireModel):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: Annotated[dict[str, Any] | None, AfterValidator(check_parameters)] = None
    strict: bool | None = None


class Tool(WireModel):
    type: Literal["function"]
    function: FunctionTool


class NamedTool(BaseModel):
    """The tool that the model must call, for the schema only; `check_tool_choice` validates it."""

    type: Literal["function"]
    function: dict[Literal["name"], str]


ToolChoice = Literal["none", "auto", "required"]


def check_tool_choice(value: Any) -> str | dict[str, Any] | None:
    """Return one of the three words, or an object. Raises ValueError."""
    if value is None or isinstance(value, dict):
        return value
    if value in ("none", "auto", "required"):
        return str(value)
    raise ValueError("Input should be 'none', 'auto', 'required' or an object")


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "default", "auto"]
ReasoningFormat = Literal["auto", "deepseek", "parsed", "hidden"]
"""Names used by llama.cpp and Groq. Only `hidden` has an effect."""


class ThinkingObject(BaseModel):
    """`thinking` as an object, for the schema only; `check_thinking` validates it."""

    type: Literal["enabled", "disabled", "adaptive", "auto"]
    budget_tokens: int | None = Field(None, ge=0)
    display: Literal["summarized", "omitted"] | None = None


class ReasoningObject(BaseModel):
    """`reasoning` as an object, for the schema only; `check_reasoning` validates it."""

    effort: Effort | None = None
    enabled: bool | None = None
    exclude: bool | None = None
    max_tokens: int | None = Field(None, ge=0)
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ThinkingFields(WireModel):
    """The reasoning fields of a chat."""

    reasoning_effort: Effort | None = None
    reasoning: Annotated[
        bool | dict[str, Any] | None,
        PlainValidator(check_reasoning, json_schema_input_type=bool | ReasoningObject | None),
    ] = None
    thinking: Annotated[
        bool | dict[str, Any] | None,
        PlainValidator(check_thinking, json_schema_input_type=bool | ThinkingObject | None),
    ] = None
    enable_thinking: bool | None = None
    think: Annotated[
        bool | str | None,
        PlainValidator(
            check_think,
            json_schema_input_type=bool | Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None,
        ),
    ] = None
    include_reasoning: bool | None = None
    reasoning_format: ReasoningFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class CalledName(BaseModel):
    """The function that the model must call."""

    name: str


def check_function_call(value: Any) -> str | dict[str, Any] | None:
    """Return one of the two words, or an object. Raises ValueError."""
    if value is None or isinstance(value, dict):
        return value
    if value in ("none", "auto"):
        return str(value)
    raise ValueError("Input should be 'none', 'auto' or an object")


class ChatRequest(SamplingFields, ThinkingFields):
    messages: list[Message] = Field(min_length=1)
    tools: list[Tool] | None = None
    tool_choice: Annotated[
        str | dict[str, Any] | None,
        PlainValidator(check_tool_choice, json_schema_input_type=ToolChoice | NamedTool | None),
    ] = None
    parallel_tool_calls: bool | None = None
    functions: list[FunctionTool] | None = None
    function_call: Annotated[
        str | dict[str, Any] | None,
        PlainValidator(check_function_call, json_schema_input_type=Literal["none", "auto"] | CalledName | None),
    ] = None
    thinking_budget: int | None = Field(
        None, ge=0, validation_alias=AliasChoices("thinking_budget", "thinking_token_budget")
    )
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class CalledFunction(AnswerModel):
    """A call by the model; the arguments are the JSON of an object."""

    name: str
    arguments: str


class AnsweredCall(AnswerModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnsweredCallDelta(AnsweredCall):
    """A whole call; `index` counts the calls of the answer."""

    index: int


class TokenLogprob(AnswerModel):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(AnswerModel):
    """Log-probabilities of the content's tokens."""

    content: list[ContentLogprob]
    refusal: None


class AnswerMessage(AnswerModel):
    """Reasoning and calls, if any; `function_call` replaces `tool_calls` for requests with `functions`."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str = ""
    reasoning: str = ""
    tool_calls: list[AnsweredCall] = Field(default_factory=list)
    function_call: CalledFunction | None = None
    refusal: None


class AnswerDelta(AnswerModel):
    """The fields that changed; the first delta of a choice has the role."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    reasoning_content: str = ""
    reasoning: str = ""
    tool_calls: list[AnsweredCallDelta] = Field(default_factory=list)
    function_call: CalledFunction | None = None


FinishReason = Literal["stop", "length", "tool_calls", "function_call"]


class _Choice(AnswerModel):
    index: int
    logprobs: ChatLogprobs | None


class ChatChoice(_Choice):
    message: AnswerMessage
    finish_reason: FinishReason


class ChatChunkChoice(_Choice):
    delta: AnswerDelta
    finish_reason: FinishReason | None


class _Head(AnswerModel):
    id: str
    created: int
    model: str
    service_tier: Literal["default", "flex", "priority"] = "default"
    """Present if the request has `service_tier`."""


class ChatCompletion(_Head):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: CompletionUsage


class ChatCompletionChunk(_Head):
    """`usage` is present if `stream_options` request it: null except in the last chunk."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: CompletionUsage | None = None
