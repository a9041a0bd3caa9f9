"""Every place that answers with an error writes it as the dialect has it whose path was asked.

A dialect that exists here alone, with another error body, fails at each of these places; beside it OpenAI's body stays.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from mlx_backend.api.errors import OutOfMemory, QueueFull
from server.app import create_app
from server.config import Config, SecurityConfig
from server.dialects import DIALECTS
from server.dialects.dialect import Dialect, collect_errors
from server.dialects.parts import ServerParts
from server.errors import APIError, InvalidRequest
from server.lifecycle import Lifecycle
from server.security import keys
from server.service import generation
from server.service.job import GenerationJob, TextPrompt
from server.service.names import FieldNames
from server.sse import StreamingAnswer
from tests.fake_engine import HANG, FakeEngine, one_by_one
from tests.server.security.wire import exchange
from tests.serving import build_registry, client_of, serve

SAY = "/other/say"
OPENAI = "/v1/completions"
JSON = {"content-type": "application/json"}
NAMES = FieldNames(prompt="text")


class Said(BaseModel):
    text: str


def encode_error(error: APIError) -> dict[str, Any]:
    return {"failed": True, "why": error.message, "how": [error.status, error.code], "at": error.param}


def build_router(parts: ServerParts) -> APIRouter:
    router = APIRouter()

    @router.post(SAY)
    async def say(request: Request, body: Said) -> Response:
        if body.text == "fault":
            raise KeyError("secret")
        job = GenerationJob(
            request_id=request.state.request_id,
            model="",
            prompts=(TextPrompt(body.text),),
            names=NAMES,
        )
        return StreamingAnswer(
            await generation.open(parts.registry, job),
            encode=encode,
            encode_error=lambda error: json.dumps(encode_error(error)).encode(),
            keep_alive_s=60.0,
            send_timeout_s=60.0,
            headers={},
        )

    return router


async def encode(events: Sequence[Any]) -> bytes:
    return b"."


OTHER = (*DIALECTS, Dialect(build_router, ("/other",), encode_error))


def code_of(answer: httpx.Response | str) -> Any:
    """The dialect in whose form an error is written, and the error's code."""
    body = json.loads(answer) if isinstance(answer, str) else answer.json()
    if "error" in body:
        assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
        return "openai", body["error"]["code"]
    assert set(body) == {"failed", "why", "how", "at"} and body["why"]
    if isinstance(answer, httpx.Response):
        assert body["how"][0] == answer.status_code
        assert answer.headers["content-type"] == "application/json"
    return "other", body["how"][1]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(one_by_one("hello"))


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    config = Config(security=SecurityConfig(max_body_bytes=1000, max_headers=20))
    async with client_of(engine, config, dialects=OTHER) as client:
        yield client


async def asked(client: httpx.AsyncClient, path: str, method: str = "POST", **options: Any) -> Any:
    return code_of(await client.request(method, path, **options))


# --- below the routes


async def test_it_answers_where_nothing_is_wrong(client: httpx.AsyncClient) -> None:
    answer = await client.post(SAY, json={"text": "hi"})
    assert (answer.status_code, answer.text) == (200, "." * 5)


async def test_a_body_that_is_no_json(client: httpx.AsyncClient) -> None:
    broken: dict[str, Any] = {"content": b'{"text": ', "headers": JSON}
    assert await asked(client, SAY, **broken) == ("other", None)
    assert await asked(client, OPENAI, **broken) == ("openai", None)


async def test_a_value_that_is_not_valid(client: httpx.AsyncClient) -> None:
    assert await asked(client, SAY, json={"text": 1}) == ("other", "invalid_value")
    assert await asked(client, SAY, json={}) == ("other", "missing_required_parameter")
    assert await asked(client, OPENAI, json={"prompt": 1}) == ("openai", "invalid_value")


@pytest.mark.parametrize(
    ("path", "whose"),
    [
        ("/other", "other"),
        ("/other/", "other"),
        ("/other/nothing", "other"),
        ("/%6fther/nothing", "other"),
        ("/others", "openai"),
        ("/nothing/other", "openai"),
        ("/nothing", "openai"),
    ],
)
async def test_an_unknown_path(client: httpx.AsyncClient, path: str, whose: str) -> None:
    assert await asked(client, path) == (whose, "not_found")


async def test_a_method_that_is_not_there(client: httpx.AsyncClient) -> None:
    assert await asked(client, SAY, "GET") == ("other", "method_not_allowed")


async def test_what_the_service_and_the_engine_refuse(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    empty = await client.post(SAY, json={"text": ""})
    assert code_of(empty) == ("other", "invalid_value")
    assert empty.json()["at"] == "text" and "'text'" in empty.json()["why"]
    engine.refusal = QueueFull(3)
    assert await asked(client, SAY, json={"text": "hi"}) == ("other", "queue_full")
    assert await asked(client, OPENAI, json={"prompt": "hi"}) == ("openai", "queue_full")


async def test_a_failure_after_the_first_byte(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = [*one_by_one("a", reason=None), OutOfMemory("no memory for this")]
    answer = await client.post(SAY, json={"text": "hi"})
    assert answer.text.startswith(".")
    assert code_of(answer.text.removeprefix(".")) == ("other", "out_of_memory")


async def test_a_fault_of_the_server(client: httpx.AsyncClient) -> None:
    answer = await client.post(SAY, json={"text": "fault"})
    assert code_of(answer) == ("other", "internal_error")
    assert "secret" not in answer.text


# --- in the layers around them


async def test_a_body_that_is_too_large(client: httpx.AsyncClient) -> None:
    async def unending() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    assert await asked(client, SAY, json={"text": "x" * 1000}) == ("other", "request_too_large")
    assert await asked(client, SAY, content=unending(), headers=JSON) == ("other", "request_too_large")
    assert await asked(client, OPENAI, json={"prompt": "x" * 1000}) == ("openai", "request_too_large")


async def test_headers_hosts_and_depth(client: httpx.AsyncClient) -> None:
    many = {f"x-{number}": "y" for number in range(20)}
    assert await asked(client, SAY, json={"text": "hi"}, headers=many) == ("other", "headers_too_large")
    assert await asked(client, SAY, json={"text": "hi"}, headers={"host": "evil.test"}) == ("other", "host_not_allowed")
    assert (await asked(client, SAY, content=b"[" * 500, headers=JSON))[0] == "other"


async def test_a_key_that_is_missing_and_one_that_has_used_up_its_share(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = keys.add(file, "alice")
    config = Config(security=SecurityConfig(keys_file=str(file), requests_per_minute=1))
    async with client_of(FakeEngine(one_by_one("hello")), config, dialects=OTHER) as client:
        assert await asked(client, SAY, json={"text": "hi"}) == ("other", "invalid_api_key")
        assert await asked(client, OPENAI, json={"prompt": "hi"}) == ("openai", "invalid_api_key")
        headers = {"authorization": f"Bearer {key}"}
        assert (await client.post(SAY, json={"text": "hi"}, headers=headers)).status_code == 200
        limited = await client.post(SAY, json={"text": "hi"}, headers=headers)
        assert (limited.status_code, code_of(limited)) == (429, ("other", "rate_limit_exceeded"))
        assert "retry-after" in limited.headers
        assert await asked(client, OPENAI, json={"prompt": "hi"}, headers=headers) == ("openai", "rate_limit_exceeded")


async def test_a_server_that_drains() -> None:
    lifecycle = Lifecycle()
    app = create_app(Config(), build_registry(FakeEngine([HANG])), lifecycle, dialects=OTHER)
    lifecycle.begin_drain()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        answer = await client.post(SAY, json={"text": "hi"})
        assert (answer.status_code, code_of(answer)) == (503, ("other", "server_shutting_down"))
        assert answer.headers["connection"] == "close"
        assert await asked(client, OPENAI, json={"prompt": "hi"}) == ("openai", "server_shutting_down")


# --- below HTTP


def test_what_the_connection_refuses() -> None:
    head = "Host: localhost\r\nContent-Type: application/json\r\n"
    long = f"X-A: {'a' * 1_000_000}"  # more than is read at once
    gzipped = "Transfer-Encoding: gzip, chunked\r\n\r\n"
    broken = "Transfer-Encoding: chunked\r\n\r\nno chunk\r\n"
    with serve(FakeEngine(one_by_one("hello")), dialects=OTHER, until_ready=False) as server:

        def refused(line: str, rest: str) -> Any:
            answer = exchange(server.port, [f"{line}\r\n{rest}".encode()], closes=False)
            return code_of(answer.partition(b"\r\n\r\n")[2].decode())

        for line, whose in (
            (f"POST {SAY} HTTP/1.1", "other"),
            (f"POST {SAY}?a=b HTTP/1.1", "other"),
            (f"POST http://localhost{SAY} HTTP/1.1", "other"),
            ("POST /%6fther HTTP/1.1", "other"),
            (f"POST {OPENAI} HTTP/1.1", "openai"),
        ):
            assert refused(line, head + long) == (whose, "headers_too_large")
            assert refused(line, head + gzipped) == (whose, "unsupported_transfer_encoding")
            assert refused(line, head + broken) == (whose, None)
        assert refused("nonsense", head) == ("openai", None)


# --- what a dialect may claim


def test_the_longer_path_decides() -> None:
    deeper = Dialect(build_router, ("/other/deep",), lambda error: {"deep": error.code})
    error = InvalidRequest("no", code="c")
    for dialects in ((*OTHER, deeper), (deeper, *OTHER)):
        bodies = collect_errors(dialects)
        assert json.loads(bodies.write("/other/deep/x", error)) == {"deep": "c"}
        assert "failed" in json.loads(bodies.write("/other/deeper", error))


@pytest.mark.parametrize("prefix", ["", "/", "other", "/mine/", "/other"])
def test_a_path_is_claimed_once_and_is_one(prefix: str) -> None:
    with pytest.raises(ValueError, match="claimed"):
        collect_errors((*OTHER, Dialect(build_router, (prefix,), encode_error)))


def test_a_body_is_ascii_whatever_the_message_quotes() -> None:
    assert collect_errors(OTHER).write("/other", InvalidRequest("\ud800ä")).isascii()
