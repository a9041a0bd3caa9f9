"""What a client is told when something goes wrong, and the one table from the engine's errors to it.

    APIError                     status  type                    code
    ├── InvalidRequest           400     invalid_request_error   -
    │   └── UnsupportedParameter 400     invalid_request_error   unsupported_parameter
    ├── ModelNotFound            404     invalid_request_error   model_not_found
    ├── BodyTooLarge             413     invalid_request_error   request_too_large
    ├── Unavailable              503     server_error            -            with Retry-After
    └── InternalError            500     server_error            internal_error

Before the first byte an error is a status and a body; after it, one event in the dialect's shape (`sse`).
Knows OpenAI's error body, the shape of every answer no dialect claims. Knows nothing of jobs or streams.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from mlx_backend.api import errors as engine_errors
from server.logs import shows_prompts

logger = logging.getLogger("pippin.errors")

RETRY_AFTER_S = 5
_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


class APIError(Exception):
    """An error a client can read. `param` is the wire's name of what was wrong, dotted."""

    status: int = 500
    type: str = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer, beyond those of every answer."""
        return {}


class InvalidRequest(APIError):
    """The request cannot be served as it is; the same request will fail again."""

    status = 400
    type = "invalid_request_error"


class UnsupportedParameter(InvalidRequest):
    """An option that would change the output, and that this server does not have."""

    code = "unsupported_parameter"

    def __init__(self, param: str, message: str | None = None) -> None:
        super().__init__(message or f"The parameter '{param}' is not supported with this value.", param=param)


class ModelNotFound(InvalidRequest):
    """No served model has this name."""

    status = 404
    code = "model_not_found"

    def __init__(self, name: str, served: Sequence[str]) -> None:
        known = ", ".join(served) or "none"
        super().__init__(f"The model '{name}' does not exist here. Served: {known}.", param="model")


class BodyTooLarge(InvalidRequest):
    """The body is over `security.max_body_bytes`."""

    status = 413
    code = "request_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request body is larger than {limit} bytes, the most this server accepts.")


class Unavailable(APIError):
    """Nothing is wrong with the request; later it may be served."""

    status = 503

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(RETRY_AFTER_S)}


class InternalError(APIError):
    """A fault of the server. The message says nothing of its inside; the log does."""

    code = "internal_error"

    def __init__(self, message: str = "The server had an error while processing the request.") -> None:
        super().__init__(message)


class _EngineFailure(APIError):
    """An engine error without a class of its own here: status, type and code come from the table."""

    def __init__(
        self, message: str, status: int, type: str, code: str, param: str | None, retry_after_s: int = RETRY_AFTER_S
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status
        self.type = type
        self._retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self._retry_after_s)} if self.code in _RETRY_CODES else {}


ENGINE_ERRORS: Mapping[type[engine_errors.EngineError], tuple[int, str, str]] = {
    engine_errors.EngineError: (500, "server_error", "engine_error"),
    engine_errors.ModelLoadError: (503, "server_error", "model_load_error"),
    engine_errors.EngineNotReady: (503, "server_error", "model_loading"),
    engine_errors.EngineDead: (503, "server_error", "engine_dead"),
    engine_errors.EngineClosed: (503, "server_error", "engine_closed"),
    engine_errors.QueueFull: (503, "server_error", "queue_full"),
    engine_errors.ContextLengthExceeded: (400, "invalid_request_error", "context_length_exceeded"),
    engine_errors.MemoryLimitExceeded: (400, "invalid_request_error", "memory_limit_exceeded"),
    engine_errors.TooManyPrompts: (400, "invalid_request_error", "too_many_prompts"),
    engine_errors.UnknownToken: (400, "invalid_request_error", "invalid_value"),
    engine_errors.SequenceFailed: (500, "server_error", "sequence_failed"),
    engine_errors.OutOfMemory: (503, "server_error", "out_of_memory"),
    engine_errors.GrammarFailed: (400, "invalid_request_error", "grammar_failed"),
    engine_errors.GrammarLost: (500, "server_error", "grammar_lost"),
}
_RETRY_CODES = frozenset({"model_loading", "queue_full", "engine_closed"})


def to_api_error(error: BaseException, param: str | None = None) -> APIError:
    """The error a client sees for `error`. What nobody foresaw becomes an InternalError."""
    if isinstance(error, APIError):
        return error
    for kind in type(error).__mro__:
        if kind in ENGINE_ERRORS:
            retry_after_s = getattr(error, "retry_after_s", RETRY_AFTER_S)
            return _EngineFailure(str(error) or kind.__name__, *ENGINE_ERRORS[kind], param, retry_after_s)
    return InternalError()


def openai_body(error: APIError) -> dict[str, Any]:
    """OpenAI's error body."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def openai_response(error: APIError) -> Response:
    """The error as an answer of its own. Pure ASCII: the message may quote what is no valid Unicode."""
    _log_answer(error)
    return Response(json.dumps(openai_body(error)), error.status, headers=error.headers, media_type="application/json")


def _log_answer(error: APIError) -> None:
    told = error.message if shows_prompts() else describe_error(error)
    fields = {"status": error.status, "code": error.code or error.type}
    logger.info("answered %d %s: %s", error.status, error.code or error.type, told, extra={"fields": fields})


def describe_error(error: APIError) -> str:
    """What is wrong with a request is told its client; its words may be a prompt's: others are told the place."""
    if not isinstance(error, InvalidRequest):
        return error.message
    return f"at '{_place(error.param)}'" if error.param else "no parameter"


def _place(param: str) -> str:
    """A parameter's name as far as it is made of names and numbers."""
    return ".".join(part if _NAME.fullmatch(part) else "?" for part in param.split(".")[:8])


def from_validation(error: RequestValidationError) -> InvalidRequest:
    """The first of the validation's complaints as one sentence that names the parameter."""
    first = error.errors()[0]
    kind, location = first["type"], first["loc"][1:]
    if kind == "json_invalid":
        at = location[0] if location else 0
        return InvalidRequest(f"The request body is not valid JSON: {first['ctx']['error']} at position {at}.")
    if not location:
        return InvalidRequest("The request body must be a JSON object, sent with 'Content-Type: application/json'.")
    param = ".".join(map(str, location))
    if kind == "missing":
        return InvalidRequest(f"The parameter '{param}' is required.", param=param, code="missing_required_parameter")
    message = str(first["msg"]).removeprefix("Value error, ")
    return InvalidRequest(f"Invalid value for '{param}': {message}.", param=param, code="invalid_value")


def from_http(error: HTTPException, method: str, path: str) -> APIError:
    """A routing error of the framework, in words."""
    if error.status_code == 404:
        answer: APIError = InvalidRequest(f"Unknown path: {method} {path}", code="not_found")
    elif error.status_code == 405:
        answer = InvalidRequest(f"The method {method} is not allowed for {path}", code="method_not_allowed")
    elif error.status_code == 400:
        answer = InvalidRequest("The request body cannot be read as JSON.")
    else:
        answer = APIError(str(error.detail))
    answer.status = error.status_code
    return answer


async def _answer_api_error(request: Request, error: Exception) -> Response:
    return _respond(request, to_api_error(error))


async def _answer_unexpected(request: Request, _: Exception) -> Response:
    return _respond(request, InternalError())


async def _answer_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _respond(request, from_validation(error))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _respond(request, from_http(error, request.method, request.url.path))
    response.headers.update(error.headers or {})
    return response


ErrorCounts = Counter[tuple[int, str]]
"""Errors that clients were told, by status and code; an error without a code counts by its type."""


def count_error(counts: ErrorCounts, error: APIError | None) -> None:
    """One more request that was answered with `error`, if it was."""
    if error is not None:
        counts[error.status, error.code or error.type] += 1


def note_error(scope: MutableMapping[str, Any], error: APIError) -> None:
    """Remember what the request of `scope` is told, for the envelope, which counts it."""
    scope.setdefault("state", {})["error"] = error


def _respond(request: Request, error: APIError) -> Response:
    note_error(request.scope, error)
    return openai_response(error)


def install(app: FastAPI) -> None:
    """Have every error of `app` answered in OpenAI's shape. The unforeseen ones are logged by `middleware`."""
    app.add_exception_handler(APIError, _answer_api_error)
    app.add_exception_handler(engine_errors.EngineError, _answer_api_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_unexpected)
