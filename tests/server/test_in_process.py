"""A request of a batch passes what one over HTTP does, but for its connection and its key."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from server.batches.answers import Answer
from server.batches.run import Stopped
from server.config import SecurityConfig
from server.dialects.openai_errors import encode_error
from server.error_bodies import ErrorBodies
from server.in_process import InProcess, as_batch
from server.logs import current_request_id
from server.security.tenant import Tenant

TENANT = Tenant("ann")


def sender(app: Any, limits: SecurityConfig | None = None, tenant: Callable[[], Tenant | None] = lambda: TENANT) -> Any:
    return InProcess(app, ErrorBodies(encode_error), lambda: limits or SecurityConfig(), tenant).send


async def test_an_application_sees_a_request_of_the_tenant() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([scope, await receive(), current_request_id.get()])
        await send({"type": "http.response.start", "status": 201, "headers": [(b"retry-after", b"7")]})
        await send({"type": "http.response.body", "body": b'{"a"', "more_body": True})
        await send({"type": "http.response.body", "body": b": 1}"})

    answer = await sender(app)("/v1/completions", b'{"prompt": "x"}')
    scope, message, request_id = seen
    assert answer == Answer(201, b'{"a": 1}', request_id, 7.0)
    assert (scope["method"], scope["path"], scope["state"]["tenant"]) == ("POST", "/v1/completions", as_batch(TENANT))
    assert scope["state"]["is_operator"] is False
    assert scope["state"]["request_id"] == request_id != current_request_id.get()
    assert message == {"type": "http.request", "body": b'{"prompt": "x"}', "more_body": False}


async def test_its_client_does_not_leave() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receive(), 0.01)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    assert (await sender(app)("/x", b"{}")).status == 200


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"[" * 15 + b"]" * 15, 400, "too_deep"),
        (json.dumps([[]] * 50).encode(), 400, "too_many_items"),
        (b'"' + b"x" * 1000 + b'"', 413, "request_too_large"),
    ],
)
async def test_a_body_that_the_gate_would_refuse_is_refused(body: bytes, status: int, code: str) -> None:
    async def app(*_: Any) -> None:
        raise AssertionError

    limits = SecurityConfig(max_json_depth=10, max_json_items=20, max_body_bytes=500)
    answer = await sender(app, limits)("/v1/completions", body)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, code)


async def test_an_application_that_fails_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    async def app(*_: Any) -> None:
        raise RuntimeError("broken")

    answer = await sender(app)("/v1/completions", b"{}")
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (500, "internal_error")
    assert "unexpected error" in caplog.text


async def test_a_key_that_is_gone_ends_the_batch() -> None:
    async def app(*_: Any) -> None:
        raise AssertionError

    with pytest.raises(Stopped, match="is not valid any more"):
        await sender(app, tenant=lambda: None)("/v1/completions", b"{}")
