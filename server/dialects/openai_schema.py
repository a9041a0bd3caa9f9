"""Models that the OpenAI dialects share: errors, usage, grammars, streams of chunks.

The models compute nothing: the encoders write answers by hand, and the tests compare them with these models.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_REF = "#/components/schemas/{model}"

Responses = dict[int | str, dict[str, Any]]

NotEmpty = Annotated[str, Field(min_length=1)]
JSONText = Annotated[str, Field(json_schema_extra={"contentMediaType": "application/json"})]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]

_Ids = Annotated[list[TokenId], Field(min_length=1)]
PublishedPrompt = (
    NotEmpty | Annotated[list[NotEmpty], Field(min_length=1)] | _Ids | Annotated[list[_Ids], Field(min_length=1)]
)


class AnswerModel(BaseModel):
    """A body that is sent: exactly these fields."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(AnswerModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(AnswerModel):
    """The body of every error."""

    error: ErrorDetail


class PromptTokensDetails(AnswerModel):
    """`truncated_tokens` is present if the oldest turns were left out."""

    cached_tokens: int
    truncated_tokens: int = 0


class CompletionTokensDetails(AnswerModel):
    """Parts of the completion: reasoning tokens, and tokens of a prediction that were accepted and rejected."""

    reasoning_tokens: int | None = None
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None


class CompletionUsage(AnswerModel):
    """The tokens of a request; only chats have details of the completion."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | None = None


class NamedSchema(BaseModel):
    """A named JSON schema; `description` and `strict` have no effect."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    json_schema: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class PlainFormat(BaseModel):
    """`schema` is only for `json_object`."""

    type: Literal["text", "json_object"]
    json_schema: dict[str, Any] | None = Field(None, alias="schema")


class SchemaFormat(BaseModel):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = PlainFormat | SchemaFormat


class StructuredOutputs(BaseModel):
    """A grammar in vLLM's names; at most one."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"maxProperties": 1})

    json_: dict[str, Any] | JSONText | None = Field(None, alias="json")
    regex: str | None = Field(None, min_length=1)
    choice: list[NotEmpty] | None = Field(None, min_length=1)
    grammar: str | None = Field(None, min_length=1)
    json_object: bool | None = None


_FAILURES = {
    400: "The request cannot be served as it is",
    404: "No served model has this name",
    409: "A batch that has not ended needs it",
    413: "The body is larger than `security.max_body_bytes`",
    500: "A fault of the server, or of the computation",
    503: "Not now: the model loads, the queue is full, or the engine is dead",
    507: "There is no room for it",
}


def error_responses(*statuses: int) -> Responses:
    """Return the error responses of a route."""
    return {status: {"model": ErrorBody, "description": _FAILURES[status]} for status in statuses}


GENERATION_ERRORS = error_responses(400, 404, 413, 500, 503)


def answer_response(whole: type[BaseModel], chunk: type[BaseModel]) -> Responses:
    """Return the answer as one object, or with `stream` as events with a chunk each, ended by `[DONE]` or an error."""
    found = chunk.model_json_schema(ref_template=_REF, mode="serialization")
    names = [_REF.format(model=model.__name__) for model in (chunk, ErrorBody)]
    data = {"contentMediaType": "application/json", "contentSchema": {"anyOf": [{"$ref": name} for name in names]}}
    event = {
        "type": "object",
        "properties": {"data": {"type": "string", "anyOf": [{"const": "[DONE]"}, data]}},
        "required": ["data"],
        "$defs": {**found.pop("$defs", {}), chunk.__name__: found},  # `server.openapi` moves them where the names point
    }
    about = "The answer whole, or with `stream` as server-sent events"
    return {200: {"model": whole, "description": about, "content": {"text/event-stream": {"itemSchema": event}}}}


def answer_events(whole: type[BaseModel], event: type[BaseModel]) -> Responses:
    """Return the same for events with a type each, which is also the event's name; the last has the whole answer."""
    found = event.model_json_schema(ref_template=_REF, mode="serialization")
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": _REF.format(model=event.__name__)},
    }
    item = {
        "type": "object",
        "properties": {"event": {"type": "string"}, "data": data},
        "required": ["event", "data"],
        "$defs": {**found.pop("$defs", {}), event.__name__: found},
    }
    about = "The answer whole, or with `stream` as server-sent events"
    return {200: {"model": whole, "description": about, "content": {"text/event-stream": {"itemSchema": item}}}}
