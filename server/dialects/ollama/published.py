"""Published schema of the routes under `/api`: bodies, answers, the lines of a stream, failures.

These models compute nothing: the encoders write answers by hand, and tests check them against these models.
"""

from __future__ import annotations

from typing import Any, Literal

from server.dialects.openai_schema import AnswerModel, Responses
from server.dialects.openai_shared import WireModel

LINES = "application/x-ndjson"
_COMPONENTS = "#/components/schemas/"


class OllamaError(AnswerModel):
    """The body of every failure under `/api`, and the last line of a stream that fails."""

    error: str


class OllamaLogprobToken(AnswerModel):
    token: str
    logprob: float
    bytes: list[int]


class OllamaLogprob(OllamaLogprobToken):
    top_logprobs: list[OllamaLogprobToken]


class OllamaAnsweredFunction(AnswerModel):
    index: int
    name: str
    arguments: dict[str, Any]


class OllamaAnsweredCall(AnswerModel):
    id: str
    function: OllamaAnsweredFunction


class OllamaAnswerMessage(AnswerModel):
    role: Literal["assistant"]
    content: str
    thinking: str | None = None
    tool_calls: list[OllamaAnsweredCall] | None = None


class _Part(AnswerModel):
    """Fields of every line, and those of the last one. Durations are nanoseconds."""

    model: str
    created_at: str
    logprobs: list[OllamaLogprob] | None = None
    done: bool
    done_reason: Literal["stop", "length", "load", "unload"] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class OllamaChatAnswer(_Part):
    """An answer of `/api/chat`, or with `stream` a line of it."""

    message: OllamaAnswerMessage


class OllamaGenerateAnswer(_Part):
    """An answer of `/api/generate`, or with `stream` a line of it."""

    response: str
    thinking: str | None = None


class OllamaEmbedAnswer(AnswerModel):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbeddingsAnswer(AnswerModel):
    embedding: list[float]


class OllamaDetails(AnswerModel):
    parent_model: str
    format: Literal["mlx"]
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaTag(AnswerModel):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: OllamaDetails


class OllamaTags(AnswerModel):
    """The served models, loaded or not."""

    models: list[OllamaTag]


class OllamaRunning(AnswerModel):
    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails
    expires_at: str
    size_vram: int
    context_length: int


class OllamaRunningModels(AnswerModel):
    """The models in memory."""

    models: list[OllamaRunning]


class OllamaShown(AnswerModel):
    """One model. The values of `model_info` depend on the model."""

    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class OllamaVersion(AnswerModel):
    """`version`: the version of Ollama that this API is compatible with."""

    version: str
    pippin: str


class OllamaStatus(AnswerModel):
    status: Literal["success"]


_ABOUT = {
    400: "The request cannot be served as it is",
    401: "No key was sent, or one that is not known, where keys are asked for",
    403: "The `Host` or `Origin` is not one that this server answers to, or the key may not do this",
    404: "No served model has this name",
    408: "The body did not come in time",
    413: "The body is larger than `security.max_body_bytes`",
    429: "The key has used up what it may use in a minute",
    431: "More headers, or longer ones, than are read",
    500: "A fault of the server, or of the computation",
    503: "Not now: the model loads, the queue is full, or the engine is dead",
}


def _failures(*statuses: int) -> Responses:
    return {status: {"model": OllamaError, "description": _ABOUT[status]} for status in statuses}


AT_THE_GATE = _failures(401, 403, 429, 431)
"""Failures of every route."""
_WITH_BODY = _failures(400, 404, 408, 413, 500, 503)
"""Failures of routes that read a body."""
REFUSAL = _failures(400)
"""The only answer of routes that this server does not support."""


def whole(model: type[AnswerModel]) -> Responses:
    """Return the schema of an answer as one object."""
    return {200: {"model": model, "description": "The answer"}}


def lines(model: type[AnswerModel]) -> Responses:
    """Return the schema of an answer as one object, or as lines of JSON."""
    names = [f"{_COMPONENTS}{each.__name__}" for each in (model, OllamaError)]
    found = {"anyOf": [{"$ref": name} for name in names]}
    about = "The answer whole, or as lines of JSON unless `stream` is false"
    return {200: {"model": model, "description": about, "content": {LINES: {"itemSchema": found}}}}


def taking(body: type[WireModel], answer: Responses) -> dict[str, Any]:
    """Return the schema of a route that reads its own body, with or without a content type.

    The models share names with models of other APIs, so they are prefixed here.
    """
    found = body.model_json_schema(ref_template=f"{_COMPONENTS}Ollama{{model}}")
    models = {f"Ollama{name}": model for name, model in found.pop("$defs", {}).items()}
    name = f"Ollama{body.__name__}"
    schema = {"$ref": f"{_COMPONENTS}{name}", "$defs": {**models, name: found}}  # `server.openapi` moves them
    extra = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
    return {"responses": {**answer, **_WITH_BODY}, "openapi_extra": extra}
