"""Bodies of errors under `/v1/messages`, with Anthropic's error types by status."""

from __future__ import annotations

from typing import Any

from mlx_backend.api.errors import ContextLengthExceeded
from server.errors import APIError, InvalidRequest
from server.logs import current_request_id

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


def encode_error(error: APIError) -> dict[str, Any]:
    """Return the error of the request in progress. The message begins with the place unless it already names it."""
    return {
        "type": "error",
        "error": {"type": _type_of(error), "message": _message_of(error)},
        "request_id": current_request_id.get() or None,
    }


def _message_of(error: APIError) -> str:
    if isinstance(error.origin, ContextLengthExceeded):
        return _too_long(error.origin)
    if error.param and error.param not in error.message:
        return f"{error.param}: {error.message}"
    return error.message


def _too_long(error: ContextLengthExceeded) -> str:
    """Return Anthropic's wording, by which agents detect that they must shorten their conversation."""
    num_tokens, limit = error.num_prompt_tokens, error.limit
    if num_tokens >= limit:
        return f"prompt is too long: {num_tokens} tokens > {limit} maximum"
    return (
        f"input length and `max_tokens` exceed context limit: {num_tokens} + {error.max_tokens} > {limit}, "
        "decrease input length or `max_tokens` and try again"
    )


def _type_of(error: APIError) -> str:
    known = _TYPES.get(error.status)
    if known is not None:
        return known
    if isinstance(error, InvalidRequest) or error.status < 500:
        return "invalid_request_error"
    return "overloaded_error" if "Retry-After" in error.headers else "api_error"
