"""Whatever is sent below `/api` is answered, or refused with one text: never a 500, and the next request is served."""

from __future__ import annotations

import asyncio
import copy
import json
import random
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.dialects.ollama.schema import (
    ChatRequest,
    EmbeddingsRequest,
    EmbedRequest,
    GenerateRequest,
    Options,
    PullRequest,
    ShowRequest,
)
from tests.serving import LiveServer, mock_engine, serve, wait_until

NUM_BODIES = 120
HI = [{"role": "user", "content": "hi"}]
FEW = {"num_predict": 3}
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 0.5, 1e9, -3.7, 2**40, 2**70, "", "x", "json", "a" * 300, "é", "\ud800", "5m"),
    *([], [1], ["a"], [None], [[1, 2]], {}, {"type": "object"}, {"type": 5}, {"a": {"b": [1]}}, [{"function": {}}]),
]
BODIES: list[tuple[str, Any, dict[str, Any]]] = [
    ("chat", ChatRequest, {"messages": HI, "options": FEW}),
    ("generate", GenerateRequest, {"prompt": "hi", "options": FEW}),
    ("embed", EmbedRequest, {"input": "hi"}),
    ("embeddings", EmbeddingsRequest, {"prompt": "hi"}),
    ("show", ShowRequest, {"model": "mock"}),
    ("pull", PullRequest, {"model": "mock"}),
]
OF_MESSAGES = ("role", "content", "tool_calls", "tool_name", "thinking", "tool_call_id", "images")


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with serve(mock_engine()) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/api", timeout=60) as client:
        yield client


def mutate(source: random.Random) -> tuple[str, dict[str, Any]]:
    path, schema, valid = source.choice(BODIES)
    body = copy.deepcopy(valid)
    if "messages" in body and source.random() < 0.4:
        body["messages"][0][source.choice(OF_MESSAGES)] = source.choice(VALUES)
    if "options" in body and source.random() < 0.4:
        body["options"][source.choice(list(Options.model_fields))] = source.choice(VALUES)
        body["options"] |= FEW
    for _ in range(source.randint(0, 3)):
        name = source.choice(list(schema.model_fields))
        if name != "options":  # an answer without a limit is long
            body[name] = source.choice(VALUES)
    return path, body


@pytest.mark.parametrize("seed", range(2))
def test_no_body_breaks_anything(server: LiveServer, seed: int) -> None:
    source = random.Random(seed)
    statuses = set()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for _ in range(NUM_BODIES):
            path, body = mutate(source)
            answer = client.post(f"/api/{path}", content=json.dumps(body))
            assert answer.status_code < 500, (path, body, answer.text)
            if answer.status_code != 200:
                assert list(answer.json()) == ["error"] and answer.json()["error"], (path, body)
            else:
                assert not any("error" in json.loads(line) for line in answer.text.splitlines()), (path, body)
            statuses.add(answer.status_code)
        assert client.get("/health").json()["status"] == "ok"
    assert {200, 400, 404} <= statuses


def called(arguments: Any) -> dict[str, Any]:
    calls = [{"function": {"name": "f", "arguments": arguments}}]
    return {"messages": [*HI, {"role": "assistant", "tool_calls": calls}]}


def offered(parameters: Any) -> dict[str, Any]:
    return {"messages": HI, "tools": [{"function": {"name": "f", "parameters": parameters}}]}


NAN, HALF = float("nan"), "\ud800"
ARGUMENTS, PARAMETERS = "messages.1.tool_calls.0.function.arguments", "tools.0.function.parameters"
ODD: dict[str, list[Any]] = {
    "arguments": [7, [], HALF, {HALF: 1}, {"a": [NAN]}],
    "parameters": [7, [], {"title": HALF}, {"default": NAN}, {"type": "string"}],
    "format": [7, [], "xml", {"default": NAN}],
    "keep_alive": [NAN, True, [], "soon"],
    "input": [7, None, {}, [7], ["a", HALF]],
}
WRONG: list[tuple[str, dict[str, Any], str]] = [
    *(("chat", called(value), ARGUMENTS) for value in ODD["arguments"]),
    *(("chat", offered(value), PARAMETERS) for value in ODD["parameters"]),
    *(("chat", {"messages": HI, "format": value}, "format") for value in ODD["format"]),
    *(("chat", {"messages": [], "keep_alive": value}, "keep_alive") for value in ODD["keep_alive"]),
    *(("embed", {"input": value}, "input") for value in ODD["input"]),
    ("chat", {"messages": "hi"}, "messages"),
    ("chat", {"messages": [7]}, "messages.0"),
    ("chat", {"messages": [{"content": "hi"}]}, "messages.0.role"),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, "messages.0.content"),
    ("chat", {"messages": [{"role": "user", "tool_calls": [{"function": {"name": "f"}}]}]}, "messages.0.tool_calls"),
    ("chat", {"messages": [*HI, {"role": "user", "images": ["aGk="]}]}, "messages.1.images"),
    ("chat", {"messages": HI, "options": {"temperature": NAN}}, "options.temperature"),
    ("chat", {"messages": HI, "tools": [{"type": "web_search"}]}, "tools.0"),
    ("generate", {"prompt": ["hi"]}, "prompt"),
    ("show", {"model": 7}, "model"),
]


@pytest.mark.parametrize(("path", "body", "place"), WRONG, ids=lambda value: str(value)[:60])
def test_what_is_wrong_is_refused_with_its_place(
    client: httpx.Client, path: str, body: dict[str, Any], place: str
) -> None:
    answer = client.post(path, content=json.dumps(body))
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert f"'{place}'" in answer.json()["error"] or f"'{place}." in answer.json()["error"]


BROKEN = (
    *(b"", b"{", b"null", b"[]", b"7", b'"text"', b"\xff\xfe", b'{"model": "\xff"}'),
    *(b"[" * 3000, b'{"a":' + b"9" * 5000 + b"}"),
)


def test_broken_bodies(server: LiveServer) -> None:
    with httpx.Client(base_url=f"{server.url}/api") as client:
        for path in ("chat", "generate", "embed", "embeddings", "show", "pull"):
            for body in BROKEN:
                for label in ({}, {"Content-Type": "application/json"}):
                    answer = client.post(path, content=body, headers=label)
                    assert answer.status_code == 400, (path, body)
                    assert "body" in answer.json()["error"]


@pytest.mark.parametrize("path", ["chat", "generate"])
async def test_a_consumer_that_breaks_off_frees_its_row(path: str) -> None:
    with serve(mock_engine(itl_s=0.005)) as server:
        for _ in range(2):
            async with (
                httpx.AsyncClient(base_url=server.url) as client,
                client.stream("POST", f"/api/{path}", json={"messages": HI, "prompt": "hi"}) as answer,
            ):
                async for line in answer.aiter_lines():
                    assert json.loads(line)["done"] is False
                    break
            await asyncio.to_thread(server.wait_until_idle)
        whole = json.dumps({"messages": HI, "prompt": "hi", "stream": False}).encode()
        head = f"POST /api/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(whole)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head + whole)
            await asyncio.to_thread(wait_until_busy, server)
        await asyncio.to_thread(server.wait_until_idle)


def wait_until_busy(server: LiveServer) -> None:
    wait_until(lambda: server.engine.stats().num_running > 0)
