"""The body of `/v1/chat/completions`, text only, and of its answers. Knows types and bounds; decides nothing."""

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
    """One part of a message's content, for the schema; `check_content` is what checks it."""

    type: Literal["text"]
    text: str


def check_content(value: Any) -> str:
    """The text of a content: a string, or text parts put together. Raises ValueError."""
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
    """The text of a message; None where an assistant says something else instead. Raises ValueError."""
    known = info.data
    if value is None and known.get("role") == "assistant" and any(map(known.get, _IN_PLACE_OF_CONTENT)):
        return None
    if value is None and (known.get("role") in ("tool", "function") or known.get("tool_calls") == []):
        return ""  # a tool that had nothing to say; an answer that had neither text nor calls
    if value == [] and known.get("role") not in ("tool", "function", "assistant"):
        raise ValueError("the list of parts must not be empty")
    return check_content(value)


class FunctionCall(WireModel):
    """A call that was made. Its arguments are an object, or the JSON of one."""

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
"""For the schema: everybody says something; an assistant may have calls and thoughts, also in its place."""


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
    # after those that may stand in for it
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
    """A function that may be called."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: Annotated[dict[str, Any] | None, AfterValidator(check_parameters)] = None
    strict: bool | None = None


class Tool(WireModel):
    type: Literal["function"]
    function: FunctionTool


class NamedTool(BaseModel):
    """The tool that has to be called, for the schema; `check_tool_choice` is what checks it."""

    type: Literal["function"]
    function: dict[Literal["name"], str]


ToolChoice = Literal["none", "auto", "required"]


def check_tool_choice(value: Any) -> str | dict[str, Any] | None:
    """One of the three words, or an object. Raises ValueError."""
    if value is None or isinstance(value, dict):
        return value
    if value in ("none", "auto", "required"):
        return str(value)
    raise ValueError("Input should be 'none', 'auto', 'required' or an object")


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "default", "auto"]
ReasoningFormat = Literal["auto", "deepseek", "parsed", "hidden"]
"""As llama.cpp and Groq name them; `hidden` alone changes anything here."""


class ThinkingObject(BaseModel):
    """`thinking` as an object, for the schema; `check_thinking` is what checks it."""

    type: Literal["enabled", "disabled", "adaptive", "auto"]
    budget_tokens: int | None = Field(None, ge=0)
    display: Literal["summarized", "omitted"] | None = None


class ReasoningObject(BaseModel):
    """`reasoning` as an object, for the schema; `check_reasoning` is what checks it."""

    effort: Effort | None = None
    enabled: bool | None = None
    exclude: bool | None = None
    max_tokens: int | None = Field(None, ge=0)
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ThinkingFields(WireModel):
    """The fields of a chat that are about thoughts."""

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
    """The function that has to be called."""

    name: str


def check_function_call(value: Any) -> str | dict[str, Any] | None:
    """One of the two words, or an object. Raises ValueError."""
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
    """A call, whole; `index` counts those of the answer."""

    index: int


class TokenLogprob(AnswerModel):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(AnswerModel):
    """Of the content's tokens."""

    content: list[ContentLogprob]
    refusal: None


class AnswerMessage(AnswerModel):
    """Thoughts and calls are there if there are any; `function_call` in place of `tool_calls` for `functions`."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str = ""
    reasoning: str = ""
    tool_calls: list[AnsweredCall] = Field(default_factory=list)
    function_call: CalledFunction | None = None
    refusal: None


class AnswerDelta(AnswerModel):
    """What came, and nothing else; the first of a choice has the role."""

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
    """Where the request has `service_tier`."""


class ChatCompletion(_Head):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: CompletionUsage


class ChatCompletionChunk(_Head):
    """`usage` is there if `stream_options` ask for it: null, and in the last chunk what it is."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: CompletionUsage | None = None
