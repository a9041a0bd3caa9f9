"""The table from the engine's errors to what a client sees, and OpenAI's body."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mlx_backend.api import errors as engine_errors
from server.dialects.openai_errors import encode_error
from server.errors import (
    ENGINE_ERRORS,
    APIError,
    BodyTooLarge,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    UnsupportedParameter,
    to_api_error,
)


def subclasses(kind: type[Exception]) -> Iterator[type[Exception]]:
    yield kind
    for child in kind.__subclasses__():
        yield from subclasses(child)


def test_every_engine_error_has_a_row() -> None:
    kinds = {kind for kind in subclasses(engine_errors.EngineError) if kind.__module__ == engine_errors.__name__}
    assert len(kinds) > 5
    assert kinds == set(ENGINE_ERRORS)


@pytest.mark.parametrize(
    ("error", "status", "type", "code", "retries"),
    [
        (
            engine_errors.ContextLengthExceeded(10, 5, 12),
            400,
            "invalid_request_error",
            "context_length_exceeded",
            False,
        ),
        (engine_errors.UnknownToken(9, 5), 400, "invalid_request_error", "invalid_value", False),
        (engine_errors.QueueFull(7), 503, "server_error", "queue_full", True),
        (engine_errors.EngineNotReady("loading"), 503, "server_error", "model_loading", True),
        (engine_errors.EngineDead("dead"), 503, "server_error", "engine_dead", False),
        (engine_errors.EngineClosed("closed"), 503, "server_error", "engine_closed", True),
        (engine_errors.OutOfMemory("no memory"), 503, "server_error", "out_of_memory", False),
        (engine_errors.SequenceFailed("failed"), 500, "server_error", "sequence_failed", False),
        (engine_errors.ModelLoadError("broken"), 503, "server_error", "model_load_error", False),
    ],
)
def test_engine_errors(error: Exception, status: int, type: str, code: str, retries: bool) -> None:
    answer = to_api_error(error, "prompt")
    assert (answer.status, answer.type, answer.code, answer.param) == (status, type, code, "prompt")
    assert answer.message == str(error)
    assert ("Retry-After" in answer.headers) is retries


def test_an_unknown_engine_error_takes_its_parents_row() -> None:
    kind = type("NewError", (engine_errors.OutOfMemory,), {})
    assert to_api_error(kind("x")).code == "out_of_memory"


def test_what_nobody_foresaw_tells_nothing_of_the_inside() -> None:
    answer = to_api_error(KeyError("secret"))
    assert isinstance(answer, InternalError)
    assert answer.status == 500
    assert "secret" not in str(encode_error(answer))


def test_an_api_error_is_itself() -> None:
    error = InvalidRequest("no", param="x")
    assert to_api_error(error) is error


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (InvalidRequest("no", param="n", code="c"), 400, "c", "n"),
        (UnsupportedParameter("echo"), 400, "unsupported_parameter", "echo"),
        (ModelNotFound("x", ["y"]), 404, "model_not_found", "model"),
        (BodyTooLarge(5), 413, "request_too_large", None),
    ],
)
def test_body(error: APIError, status: int, code: str, param: str | None) -> None:
    assert error.status == status
    expected = {"message": error.message, "type": "invalid_request_error", "param": param, "code": code}
    assert encode_error(error) == {"error": expected}
