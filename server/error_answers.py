"""Errors as answers: messages for the framework's errors, and a status and body for every error.

Depends on FastAPI and Starlette, so that `errors`, which the service raises, does not.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from mlx_backend.api.errors import EngineError
from server.error_bodies import ErrorBodies
from server.errors import APIError, InternalError, InvalidRequest, describe_error, note_error, to_api_error
from server.logs import shows_prompts

logger = logging.getLogger("pippin.errors")


def from_validation(error: RequestValidationError) -> InvalidRequest:
    """Return the first validation error as one sentence that names the parameter."""
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
    """Return a routing error of the framework with a message."""
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


def answer_error(bodies: ErrorBodies, scope: MutableMapping[str, Any], error: APIError) -> Response:
    """Return the answer to the request of `scope`, in the format of its dialect; record and log the error."""
    note_error(scope, error)
    _log_answer(error)
    body = bodies.write(scope["path"], error)
    return Response(body, error.status, headers=error.headers, media_type="application/json")


def _log_answer(error: APIError) -> None:
    told = error.message if shows_prompts() else describe_error(error)
    fields = {"status": error.status, "code": error.code or error.type}
    logger.info("answered %d %s: %s", error.status, error.code or error.type, told, extra={"fields": fields})


def install(app: FastAPI, bodies: ErrorBodies) -> None:
    """Install handlers for every error of `app`. `middleware` logs unexpected ones."""

    async def answer_api_error(request: Request, error: Exception) -> Response:
        return answer_error(bodies, request.scope, to_api_error(error))

    async def answer_unexpected(request: Request, _: Exception) -> Response:
        return answer_error(bodies, request.scope, InternalError())

    async def answer_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return answer_error(bodies, request.scope, from_validation(error))

    async def answer_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = answer_error(bodies, request.scope, from_http(error, request.method, request.url.path))
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(APIError, answer_api_error)
    app.add_exception_handler(EngineError, answer_api_error)
    app.add_exception_handler(RequestValidationError, answer_validation_error)
    app.add_exception_handler(HTTPException, answer_http_error)
    app.add_exception_handler(Exception, answer_unexpected)
