"""The errors that clients receive, and the one table that maps engine errors to them.

    APIError                     status  type                    code
    ├── InvalidRequest           400     invalid_request_error   -
    │   ├── UnsupportedParameter 400     invalid_request_error   unsupported_parameter
    │   ├── ModelNotFound        404     invalid_request_error   model_not_found
    │   │   └── AdapterNotLoaded
    │   └── BodyTooLarge         413     invalid_request_error   request_too_large
    ├── Unavailable              503     server_error            -            with Retry-After
    └── InternalError            500     server_error            internal_error

Before the first byte an error is a status and a body (`error_answers`, `error_bodies`); after it, one event in the
dialect's format (`sse`). Independent of bodies, jobs and streams, without HTTP imports: the service raises these.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from mlx_backend.api import errors as engine_errors

RETRY_AFTER_S = 5
_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


class APIError(Exception):
    """An error with a message for clients. `param` is the dotted name of the offending parameter on the wire."""

    status: int = 500
    type: str = "server_error"
    code: str | None = None
    origin: BaseException | None = None
    """The engine's error behind it: a dialect may have its own message for it."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    @property
    def headers(self) -> dict[str, str]:
        """Additional headers of the answer."""
        return {}


class InvalidRequest(APIError):
    """The request cannot be served; the same request will fail again."""

    status = 400
    type = "invalid_request_error"


class UnsupportedParameter(InvalidRequest):
    """An option that would change the output, but is not supported."""

    code = "unsupported_parameter"

    def __init__(self, param: str, message: str | None = None) -> None:
        super().__init__(message or f"The parameter '{param}' is not supported with this value.", param=param)


class ModelNotFound(InvalidRequest):
    """No served model has this name."""

    status = 404
    code = "model_not_found"

    def __init__(self, name: str, served: Sequence[str]) -> None:
        known = ", ".join(served) or "none"
        super().__init__(f"The model '{name}' does not exist. Served models: {known}.", param="model")


class AdapterNotLoaded(ModelNotFound):
    """An adapter of a served model that is not loaded."""

    def __init__(self, name: str) -> None:
        message = f"The adapter '{name}' is not loaded; POST /admin/models/{name}/load loads it."
        InvalidRequest.__init__(self, message, param="model")


class BodyTooLarge(InvalidRequest):
    """The body is over `security.max_body_bytes`."""

    status = 413
    code = "request_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request body is larger than this server's limit of {limit} bytes.")


class Unavailable(APIError):
    """The request is valid and may succeed later."""

    status = 503

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(RETRY_AFTER_S)}


class InternalError(APIError):
    """A fault of the server. The log has the details; the message does not."""

    code = "internal_error"

    def __init__(self, message: str = "The server had an error while processing the request.") -> None:
        super().__init__(message)


class _EngineFailure(APIError):
    """An engine error without its own class: status, type and code come from the table."""

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
    engine_errors.UnknownAdapter: (404, "invalid_request_error", "model_not_found"),
    engine_errors.AdapterRefused: (400, "invalid_request_error", "adapter_refused"),
    engine_errors.NoRoomForAdapter: (503, "server_error", "no_room_for_adapter"),
    engine_errors.SequenceFailed: (500, "server_error", "sequence_failed"),
    engine_errors.OutOfMemory: (503, "server_error", "out_of_memory"),
    engine_errors.GrammarFailed: (400, "invalid_request_error", "grammar_failed"),
    engine_errors.GrammarLost: (500, "server_error", "grammar_lost"),
}
_RETRY_CODES = frozenset({"model_loading", "queue_full", "engine_closed"})


def to_api_error(error: BaseException, param: str | None = None) -> APIError:
    """Return the error that a client receives for `error`. Unexpected errors become an InternalError."""
    if isinstance(error, APIError):
        return error
    for kind in type(error).__mro__:
        if kind in ENGINE_ERRORS:
            retry_after_s = getattr(error, "retry_after_s", RETRY_AFTER_S)
            failure = _EngineFailure(str(error) or kind.__name__, *ENGINE_ERRORS[kind], param, retry_after_s)
            failure.origin = error
            return failure
    return InternalError()


def describe_error(error: APIError) -> str:
    """Return the error for the log: only the place of an invalid request, because its message may quote a prompt."""
    if not isinstance(error, InvalidRequest):
        return error.message
    return f"at '{_place(error.param)}'" if error.param else "no parameter"


def _place(param: str) -> str:
    """Return a parameter's name, with parts that are not plain names or numbers replaced by `?`."""
    return ".".join(part if _NAME.fullmatch(part) else "?" for part in param.split(".")[:8])


ErrorCounts = Counter[tuple[int, str]]
"""Errors returned to clients, by status and code; an error without a code counts by its type."""


def count_error(counts: ErrorCounts, error: APIError | None) -> None:
    """Count `error`, unless it is None."""
    if error is not None:
        counts[error.status, error.code or error.type] += 1


def note_error(scope: MutableMapping[str, Any], error: APIError) -> None:
    """Store the error of the request of `scope`, for the envelope to count."""
    scope.setdefault("state", {})["error"] = error
