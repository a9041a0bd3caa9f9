"""Every bad input a client can send: a clear error in OpenAI's shape, and the next request is served."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from mlx_backend.api.errors import EngineDead, EngineNotReady, OutOfMemory, QueueFull
from server.config import Config, SecurityConfig
from tests.fake_engine import FakeEngine, spell
from tests.serving import client_of

PATHS = ("/v1/completions", "/v1/chat/completions")
GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
}
LIMIT = 4000


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine([spell("x")])


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    config = Config(security=SecurityConfig(max_body_bytes=LIMIT))
    async with client_of(engine, config) as client:
        yield client


def error_of(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert list(body) == ["error"]
    assert sorted(body["error"]) == ["code", "message", "param", "type"]
    assert "Traceback" not in answer.text
    assert answer.headers["x-request-id"]
    return dict(body["error"])


async def still_serves(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.post(path, json=GOOD[path])).status_code == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"prompt": "hi",}',
        b"not json",
        b"null",
        b"[]",
        b"7",
        b'"text"',
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b"[" * 3000,
        b'{"seed":' + b"9" * 3000 + b"}",
    ],
    ids=lambda body: str(body[:20]),
)
async def test_broken_bodies(client: httpx.AsyncClient, path: str, body: bytes) -> None:
    answer = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["type"] == "invalid_request_error"
    assert "body" in error["message"] or "'" in error["message"]
    await still_serves(client, path)


@pytest.mark.parametrize("path", PATHS)
async def test_a_body_that_does_not_say_it_is_json(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, content=json.dumps(GOOD[path]), headers={"content-type": "text/plain"})
    assert answer.status_code == 400
    assert "Content-Type: application/json" in error_of(answer)["message"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": -4}, "max_tokens"),
        ({"temperature": True}, "temperature"),
        ({"n": 1.5}, "n"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {"1": 1000}}, "logit_bias.1"),
        ({"logit_bias": {"999": 1}}, "logit_bias"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"ebnf": "root ::= x"}, "ebnf"),
    ],
    ids=lambda value: str(value),
)
async def test_wrong_values(client: httpx.AsyncClient, path: str, fields: dict[str, Any], param: str) -> None:
    answer = await client.post(path, json={**GOOD[path], **fields})
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    await still_serves(client, path)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
async def test_no_numbers(client: httpx.AsyncClient, value: str) -> None:
    body = f'{{"prompt": "hi", "temperature": {value}}}'
    answer = await client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "temperature"


@pytest.mark.parametrize(("path", "param"), [(PATHS[0], "prompt"), (PATHS[1], "messages")])
async def test_the_required_field(client: httpx.AsyncClient, path: str, param: str) -> None:
    answer = await client.post(path, json={"model": "mock"})
    assert answer.status_code == 400
    assert (error_of(answer)["param"], error_of(answer)["code"]) == (param, "missing_required_parameter")


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], ["a", ""], [1, 999], [-1], [[1], [2**64]]])
async def test_prompts_that_cannot_be(client: httpx.AsyncClient, prompt: Any) -> None:
    answer = await client.post(PATHS[0], json={"prompt": prompt})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "prompt"
    await still_serves(client, PATHS[0])


async def test_the_place_of_a_bad_message(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "user", "content": [{"type": "image_url"}]}]
    error = error_of(await client.post(PATHS[1], json={"messages": messages}))
    assert error["param"] == "messages.1.content"
    assert "image_url" in error["message"]


@pytest.mark.parametrize(("path", "param"), [(PATHS[0], "prompt"), (PATHS[1], "messages")])
async def test_a_prompt_over_the_limit(client: httpx.AsyncClient, engine: FakeEngine, path: str, param: str) -> None:
    body = {"prompt": "x" * 70} if path == PATHS[0] else {"messages": [{"role": "user", "content": "x" * 70}]}
    answer = await client.post(path, json={**body, "max_tokens": 5})
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    numbers = ("71", "5", "64") if path == PATHS[0] else ("87", "5", "64")
    assert all(number in error["message"] for number in numbers)
    assert not engine.requests


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("model", ["other", "/etc", "../x", "https://example.org/m", "\ud800"])
async def test_an_unknown_model(client: httpx.AsyncClient, path: str, model: str) -> None:
    body = json.dumps({**GOOD[path], "model": model})
    answer = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 404
    assert (error_of(answer)["code"], error_of(answer)["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize("path", PATHS)
async def test_a_body_over_the_limit(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, json={**GOOD[path], "user": "x" * LIMIT})
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "request_too_large"
    await still_serves(client, path)


async def test_a_body_of_unknown_length_over_the_limit(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 100

    answer = await client.post(PATHS[0], content=chunks(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "request_too_large"


async def test_unknown_paths_and_methods(client: httpx.AsyncClient) -> None:
    missing, refused = await client.get("/v1/nothing"), await client.get("/v1/completions")
    assert (missing.status_code, refused.status_code) == (404, 405)
    assert "/v1/nothing" in error_of(missing)["message"]
    assert error_of(refused)["code"] == "method_not_allowed"
    assert refused.headers["allow"] == "POST"


async def test_unknown_fields_are_listed(client: httpx.AsyncClient) -> None:
    answer = await client.post(PATHS[0], json={"prompt": "hi", "foo": 1, "bär": 2, "user": "me"})
    assert answer.status_code == 200
    assert answer.headers["x-pippin-ignored-fields"] == "b?r, foo"


@pytest.mark.parametrize(
    ("refusal", "status", "code", "retries"),
    [
        (QueueFull(9), 503, "queue_full", True),
        (EngineNotReady("loading"), 503, "model_loading", True),
        (EngineDead("gone"), 503, "engine_dead", False),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_engine_refuses(
    client: httpx.AsyncClient, engine: FakeEngine, refusal: Any, status: int, code: str, retries: bool, stream: bool
) -> None:
    engine.refusal = refusal
    answer = await client.post(PATHS[0], json={"prompt": "hi", "stream": stream})
    assert answer.status_code == status
    assert error_of(answer)["code"] == code
    assert ("retry-after" in answer.headers) is retries


async def test_a_failure_of_a_whole_answer_has_a_status(engine: FakeEngine, client: httpx.AsyncClient) -> None:
    engine.script = [spell("a", reason=None), OutOfMemory("no memory for this")]
    answer = await client.post(PATHS[0], json={"prompt": "hi"})
    assert answer.status_code == 503
    assert error_of(answer)["code"] == "out_of_memory"
    assert engine.streams[0].num_closed == 1


async def test_a_failure_of_a_stream_is_its_last_event(engine: FakeEngine, client: httpx.AsyncClient) -> None:
    engine.script = [spell("a", reason=None), OutOfMemory("no memory for this")]
    answer = await client.post(PATHS[0], json={"prompt": "hi", "stream": True})
    assert answer.status_code == 200
    first, last, end = answer.text.split("\n\n")
    assert json.loads(first.removeprefix("data: "))["choices"][0]["text"] == "a"
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "out_of_memory"
    assert end == ""
    assert engine.streams[0].num_closed == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_of_the_server(engine: FakeEngine, client: httpx.AsyncClient, stream: bool) -> None:
    engine.script = [KeyError("secret")]
    answer = await client.post(PATHS[0], json={"prompt": "hi", "stream": stream})
    assert answer.status_code == (200 if stream else 500)
    assert "internal_error" in answer.text
    assert "secret" not in answer.text
    assert engine.streams[0].num_closed == 1
