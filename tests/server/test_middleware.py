"""The request envelope, around applications of three lines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest
from sse_starlette.sse import SendTimeoutError
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import middleware
from server.dialects.openai_errors import encode_error
from server.error_bodies import ErrorBodies
from server.errors import InvalidRequest
from server.logs import current_request_id
from server.middleware import RequestEnvelope

LIMIT = 100
BODIES = ErrorBodies(encode_error)


class Call:
    """One request through an envelope: what was read of its body, and what was answered."""

    def __init__(self, chunks: Iterable[bytes] = (b"",), headers: dict[str, str] | None = None) -> None:
        self.chunks = list(chunks)
        self.headers = headers or {}
        self.sent: list[Message] = []
        self.num_read_bytes = 0

    async def receive(self) -> Message:
        if not self.chunks:
            return {"type": "http.disconnect"}
        body = self.chunks.pop(0)
        self.num_read_bytes += len(body)
        return {"type": "http.request", "body": body, "more_body": bool(self.chunks)}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def run(self, app: ASGIApp) -> Call:
        headers = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        await RequestEnvelope(app, BODIES, max_body_bytes=LIMIT)(scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def answer_headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> Any:
        return b"".join(message["body"] for message in self.sent[1:])


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(body)(scope, receive, send)


async def test_a_request_goes_through() -> None:
    call = await Call([b"a" * 60, b"b" * 40]).run(echo)
    assert call.status == 200
    assert call.body == b"a" * 60 + b"b" * 40
    assert len(call.answer_headers["x-request-id"]) == 32


async def test_the_clients_id_is_echoed_and_known_within() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["state"]["request_id"], current_request_id.get()))
        await PlainTextResponse("ok")(scope, receive, send)

    call = await Call(headers={"x-request-id": "job-7.a_B"}).run(app)
    assert call.answer_headers["x-request-id"] == "job-7.a_B"
    assert seen == [("job-7.a_B", "job-7.a_B")]
    assert current_request_id.get() == ""


@pytest.mark.parametrize("id", ["", "a b", "x" * 129, "a\r\nb", "ä", "<script>"])
async def test_an_id_that_is_not_sane_is_replaced(id: str) -> None:
    call = await Call(headers={"x-request-id": id}).run(echo)
    assert call.answer_headers["x-request-id"] != id
    assert len(call.answer_headers["x-request-id"]) == 32


async def test_a_declared_length_over_the_limit_is_refused_before_the_body_is_wanted() -> None:
    called = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        called.append(True)

    call = await Call([b"x" * 101], {"content-length": "101", "x-request-id": "me"}).run(app)
    assert call.status == 413
    assert json.loads(call.body)["error"]["code"] == "request_too_large"
    assert call.answer_headers["connection"] == "close"
    assert call.answer_headers["x-request-id"] == "me"
    assert not called


async def test_an_undeclared_body_is_refused_where_it_passes_the_limit() -> None:
    read_before_answer = []

    class Watched(Call):
        async def send(self, message: Message) -> None:
            read_before_answer.append(self.num_read_bytes)
            await super().send(message)

    call = await Watched([b"x" * 60] * 10).run(echo)
    assert call.status == 413
    assert read_before_answer[0] == 120
    assert call.num_read_bytes == 600  # read and dropped, so that the answer arrives
    assert [message["type"] for message in call.sent].count("http.response.start") == 1
    assert not call.sent[-1]["more_body"]


async def test_whatever_the_application_makes_of_it_the_answer_is_a_413() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await Request(scope, receive).body()
        except InvalidRequest as error:
            response = PlainTextResponse(f"caught {type(error).__name__}", 400)
            await response(scope, receive, send)

    call = await Call([b"x" * 60] * 2).run(app)
    assert call.status == 413
    assert b"caught" not in call.body


async def test_a_client_that_goes_on_sending_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "LINGER_S", 0.01)

    class Endless(Call):
        async def receive(self) -> Message:
            await asyncio.sleep(0.001)
            return {"type": "http.request", "body": b"x", "more_body": True}

    call = await Endless(headers={"content-length": "1000000"}).run(echo)
    assert call.status == 413
    assert not call.sent[-1]["more_body"]


async def test_an_unexpected_error_is_a_500_without_a_word_of_it(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("secret")

    call = await Call().run(app)
    assert call.status == 500
    assert json.loads(call.body)["error"]["type"] == "server_error"
    assert b"secret" not in call.body
    assert "secret" in caplog.text


async def test_an_error_after_the_first_byte_leaves_the_answer_unfinished(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("secret")

    call = await Call().run(app)
    assert [message["type"] for message in call.sent] == ["http.response.start"]
    assert "secret" in caplog.text


class Transport:
    def __init__(self) -> None:
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True


class Cycle:
    """Stands for the server's object whose bound method `send` is."""

    def __init__(self) -> None:
        self.transport = Transport()

    async def send(self, message: Message) -> None:
        raise SendTimeoutError


async def test_a_client_that_stopped_reading_is_cut_off() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    cycle = Cycle()
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    await RequestEnvelope(app, BODIES, max_body_bytes=LIMIT)(scope, Call().receive, cycle.send)
    assert cycle.transport.is_aborted


async def test_other_protocols_pass() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    await RequestEnvelope(app, BODIES, max_body_bytes=LIMIT)({"type": "lifespan"}, Call().receive, Call().send)
    assert seen == ["lifespan"]
