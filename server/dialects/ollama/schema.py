"""Bodies under `/api`. Defines the wire's types and bounds; decides nothing."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, get_args

from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, Field, PlainValidator, ValidationError

from server.dialects.openai_calls import check_parameters
from server.dialects.openai_shared import StopStrings, WireModel, check_stop, check_text
from server.json_text import why_unwritable

M = TypeVar("M", bound=BaseModel)

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
EFFORTS = get_args(Effort)


def validate(model: type[M], written: dict[str, Any]) -> M:
    """Return the body as its model. Raises RequestValidationError, which names the place."""
    try:
        return model.model_validate(written)
    except ValidationError as error:
        complaints = error.errors(include_url=False, include_input=False)
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in complaints]) from None


def _whole(value: Any) -> Any:
    """Return an integer for a number without a fraction: some clients write 4096.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check_think(value: Any) -> bool | str | None:
    if value is None or isinstance(value, bool):
        return value
    if value in EFFORTS:
        return str(value)
    raise ValueError(f"Input should be true, false, or one of {', '.join(EFFORTS)}")


def _check_format(value: Any) -> str | dict[str, Any] | None:
    if value in (None, ""):
        return None
    if value == "json":
        return "json"
    if isinstance(value, dict):
        return _check_writable(value)
    raise ValueError("Input should be 'json' or a JSON schema")


def _check_writable(value: dict[str, Any]) -> dict[str, Any]:
    """Return an object that the prompt can repeat. Raises ValueError."""
    why = why_unwritable(value)
    if why is not None:
        raise ValueError(why)
    return value


def _check_keep_alive(value: Any) -> float | str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:  # excludes NaN
        return value
    raise ValueError("Input should be a number of seconds, or a duration such as '5m'")


def _check_arguments(value: Any) -> dict[str, Any] | str | None:
    if isinstance(value, dict):
        return _check_writable(value)
    if value is None or isinstance(value, str):
        return None if value is None else check_text(value)
    raise ValueError("Input should be an object, or the JSON of one")


def _check_input(value: Any) -> str | list[str]:
    if isinstance(value, str):
        return check_text(value)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("Input should be a string or a list of strings")
    return [check_text(each) for each in value]


Text = Annotated[str, AfterValidator(check_text)]
Arguments = Annotated[
    dict[str, Any] | str | None,
    PlainValidator(_check_arguments, json_schema_input_type=dict[str, Any] | str | None),
]
Object = Annotated[dict[str, Any], AfterValidator(_check_writable)]
Think = Annotated[bool | str | None, PlainValidator(_check_think, json_schema_input_type=bool | Effort | None)]
Format = Annotated[
    str | dict[str, Any] | None,
    PlainValidator(_check_format, json_schema_input_type=Literal["json", ""] | dict[str, Any] | None),
]
KeepAlive = Annotated[float | str | None, PlainValidator(_check_keep_alive, json_schema_input_type=float | str | None)]


class Options(WireModel):
    """The options of one answer. `options` checks those with other names."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_k: Annotated[int, Field(ge=-1, lt=2**31), BeforeValidator(_whole)] | None = None
    top_p: float | None = Field(None, ge=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    num_predict: Annotated[int, Field(ge=-2, lt=2**31), BeforeValidator(_whole)] | None = None
    num_ctx: Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_whole)] | None = None
    repeat_penalty: float | None = Field(None, gt=0)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64), BeforeValidator(_whole)] | None = None
    stop: Annotated[list[str] | None, PlainValidator(check_stop, json_schema_input_type=StopStrings | None)] = None


class ModelBody(WireModel):
    """A body that names a model, as `model` or, from older clients, as `name`."""

    model: str | None = Field(None, validation_alias=AliasChoices("model", "name"))


class GenerationBody(ModelBody):
    """The fields that chat and generate share."""

    stream: bool | None = None
    options: Options | None = None
    format: Format = None
    keep_alive: KeepAlive = None
    think: Think = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), BeforeValidator(_whole)] | None = None


class GenerateRequest(GenerationBody):
    prompt: Text | None = None
    suffix: Text | None = None
    system: Text | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[Any] | None = None


class CalledFunction(WireModel):
    """A call made earlier. Its arguments are an object, or the JSON of one."""

    name: Annotated[str, Field(min_length=1), AfterValidator(check_text)]
    arguments: Arguments = None


class ToolCall(WireModel):
    id: Text | None = None
    function: CalledFunction


class Message(WireModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | None = None
    thinking: Text | None = None
    images: list[Any] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: Text | None = None
    tool_call_id: Text | None = None


class FunctionTool(WireModel):
    """A function that may be called."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: Text | None = None
    parameters: Annotated[Object | None, AfterValidator(check_parameters)] = None


class Tool(WireModel):
    type: Literal["function"] = "function"
    function: FunctionTool


class ChatRequest(GenerationBody):
    messages: list[Message] | None = None
    tools: list[Tool] | None = None


class EmbedRequest(ModelBody):
    input: Annotated[str | list[str], PlainValidator(_check_input, json_schema_input_type=str | list[str])]
    truncate: bool | None = None
    dimensions: Annotated[int, Field(ge=1), BeforeValidator(_whole)] | None = None
    options: Options | None = None
    keep_alive: KeepAlive = None


class EmbeddingsRequest(ModelBody):
    """The older form, for one text."""

    prompt: Text
    options: Options | None = None
    keep_alive: KeepAlive = None


class ShowRequest(ModelBody):
    verbose: bool | None = None


class PullRequest(ModelBody):
    stream: bool | None = None
    insecure: bool | None = None
