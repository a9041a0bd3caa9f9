"""Every bad input: an error in Anthropic's shape that names the place, never a 500."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from mlx_backend.api.errors import EngineDead, EngineNotReady, QueueFull
from server.config import Config, SecurityConfig
from server.dialects.anthropic_messages.errors import encode_error
from server.dialects.anthropic_messages.schema import MessagesRequest
from server.security.refusals import KeyRefused
from tests.fake_engine import FakeEngine, spell
from tests.server.dialects.anthropic_messages.serving import BODY, PATH, Server
from tests.server.test_golden import said
from tests.serving import client_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

USER = {"role": "user", "content": "hi"}
CALL = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "4"}


def error_of(answer: Any) -> dict[str, Any]:
    body = answer.json()
    assert list(body) == ["type", "error", "request_id"]
    assert body["type"] == "error"
    assert sorted(body["error"]) == ["message", "type"]
    assert body["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
    return dict(body["error"])


def blocks(*content: Any, role: str = "user") -> dict[str, Any]:
    earlier = [] if role == "user" else [USER]
    return {"messages": [*earlier, {"role": role, "content": list(content)}]}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [7]}, "messages.0"),
    ({"messages": [{"content": "hi"}]}, "messages.0.role"),
    ({"messages": [{"role": "tool", "content": "hi"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": {"type": "text"}}]}, "messages.0.content"),
    ({"messages": [{"role": "assistant", "content": "hi"}]}, "messages.0.role"),
    ({"messages": [{"role": "system", "content": "hi"}, {"role": "assistant", "content": "x"}]}, "messages.1.role"),
    ({"messages": [{"role": "system", "content": "hi"}]}, "messages"),
    (blocks("hi"), "messages.0.content.0"),
    (blocks({}), "messages.0.content.0.type"),
    (blocks({"type": ["text"]}), "messages.0.content.0.type"),
    (blocks({"type": "text"}), "messages.0.content.0.text"),
    (blocks({"type": "text", "text": 7}), "messages.0.content.0.text"),
    (blocks({"type": "text", "text": "\ud800"}), "messages.0.content.0.text"),
    (blocks({"type": "video"}), "messages.0.content.0.type"),
    (blocks({"type": "text", "text": "a"}, {"type": "image", "source": {}}), "messages.0.content.1.type"),
    (blocks({"type": "document", "source": {}}), "messages.0.content.0.type"),
    (blocks({"type": "thinking", "thinking": "a", "signature": "b"}), "messages.0.content.0.type"),
    (blocks(RESULT), "messages.0.content.0.tool_use_id"),
    (blocks({**RESULT, "tool_use_id": None}), "messages.0.content.0.tool_use_id"),
    (blocks(CALL, role="assistant"), "messages.1.content"),
    (blocks({**CALL, "input": "{}"}, role="assistant"), "messages.1.content.0.input"),
    (blocks({**CALL, "input": {"a": [float("nan")]}}, role="assistant"), "messages.1.content.0.input"),
    (blocks({**CALL, "input": {"\ud800": 1}}, role="assistant"), "messages.1.content.0.input"),
    (blocks({**CALL, "id": 7}, role="assistant"), "messages.1.content.0.id"),
    (blocks({**CALL, "name": ""}, role="assistant"), "messages.1.content.0.name"),
    (blocks(RESULT, role="assistant"), "messages.1.content.0.type"),
    (
        blocks({"type": "server_tool_use", "id": "a", "name": "b", "input": {}}, role="assistant"),
        "messages.1.content.0.type",
    ),
    (blocks({"type": "thinking"}, role="assistant"), "messages.1.content.0.thinking"),
    (
        blocks({"type": "thinking", "thinking": "", "signature": "pippin.thought.eJ"}, role="assistant"),
        "messages.1.content.0.signature",
    ),
    ({"system": 7}, "system"),
    ({"system": [{"type": "image"}]}, "system.0.type"),
    ({"system": ["a"]}, "system.0"),
    ({"max_tokens": "9"}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"top_k": -5}, "top_k"),
    ({"stream": "yes"}, "stream"),
    ({"stop_sequences": "a"}, "stop_sequences"),
    ({"stop_sequences": [""]}, "stop_sequences.0"),
    ({"model": 7}, "model"),
    ({"thinking": {"type": "much"}}, "thinking.type"),
    ({"thinking": {"type": "enabled", "budget_tokens": "many"}}, "thinking.budget_tokens"),
    ({"output_config": {"effort": "great"}}, "output_config.effort"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools.0.name"),
    ({"tools": [{"input_schema": {}}]}, "tools.0.name"),
    ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
    ({"tools": [{"name": "f", "input_schema": 7}]}, "tools.0.input_schema"),
    ({"tools": [{"name": "f", "input_schema": {"type": "string"}}]}, "tools.0.input_schema.type"),
    ({"tools": [{"name": "f", "input_schema": {"properties": []}}]}, "tools.0.input_schema.properties"),
    ({"tools": [{"name": "f", "input_schema": {"default": float("inf")}}]}, "tools.0.input_schema"),
    ({"tools": [{"name": "f", "input_schema": {"title": "\udfff"}}]}, "tools.0.input_schema"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tool_choice": {"type": "tool", "name": "g"}, "tools": [{"name": "f", "input_schema": {}}]}, "tool_choice.name"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
    ({"container": "c"}, "container"),
    ({"context_management": {"edits": 7}}, "context_management.edits"),
]


@pytest.mark.parametrize(("fields", "place"), BAD, ids=lambda value: str(value)[:60])
async def test_what_is_wrong_is_said_with_its_place(server: Server, fields: dict[str, Any], place: str) -> None:
    server.play(said("x"))
    content = json.dumps({**BODY, **fields})
    for path in (PATH, f"{PATH}/count_tokens"):
        answer = await server.client.post(path, content=content, headers={"content-type": "application/json"})
        if path == PATH or place.partition(".")[0] not in OF_ANSWERS:
            assert answer.status_code == 400, answer.text
            error = error_of(answer)
            assert error["type"] == "invalid_request_error"
            assert place in error["message"]


OF_ANSWERS = {"max_tokens", "temperature", "top_p", "top_k", "stream", "stop_sequences"}
"""What counting does not look at."""


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b"\xff\xfe", b"[" * 3000], ids=lambda body: str(body[:9]))
async def test_broken_bodies(server: Server, body: bytes) -> None:
    answer = await server.client.post(PATH, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, error_of(answer)["type"]) == (400, "invalid_request_error")


async def test_paths_methods_and_names(server: Server) -> None:
    found = [
        await server.client.get(PATH),
        await server.client.post(f"{PATH}/batches", json={}),
        await server.client.post(PATH, json={**BODY, "model": "gpt-4o"}),
    ]
    assert [answer.status_code for answer in found] == [405, 404, 404]
    assert [error_of(answer)["type"] for answer in found] == [
        "invalid_request_error",
        "not_found_error",
        "not_found_error",
    ]


@pytest.mark.parametrize(
    ("refusal", "status", "kind", "retries"),
    [
        (QueueFull(9), 503, "overloaded_error", True),
        (EngineNotReady("loading"), 503, "overloaded_error", True),
        (EngineDead("gone"), 503, "api_error", False),
    ],
)
async def test_what_the_engine_refuses(server: Server, refusal: Any, status: int, kind: str, retries: bool) -> None:
    server.play([])
    server.engine.refusal = refusal
    answer = await server.client.post(PATH, json=BODY)
    assert (answer.status_code, error_of(answer)["type"], "retry-after" in answer.headers) == (status, kind, retries)


async def test_limits_of_the_server_have_the_shape_too(server: Server) -> None:
    config = Config(security=SecurityConfig(max_body_bytes=200, requests_per_minute=2))
    async with client_of(FakeEngine([spell("x")]), config) as client:
        answers = [await client.post(PATH, json={**BODY, "metadata": {"user_id": "x" * n}}) for n in (9, 900, 9, 9)]
        foreign = await client.post(PATH, json=BODY, headers={"origin": "https://a.example"})
    assert [answer.status_code for answer in (*answers, foreign)] == [200, 413, 200, 429, 403]
    kinds = [error_of(answer)["type"] for answer in (answers[1], answers[3], foreign)]
    assert kinds == ["request_too_large", "rate_limit_error", "permission_error"]
    assert encode_error(KeyRefused("who?"))["error"] == {"type": "authentication_error", "message": "who?"}


async def test_odd_bodies_over_http(server: Server) -> None:
    """Each field with values of other types."""
    server.play(said("x"))
    odd: list[Any] = [None, True, 0, -1, 1.5, "", "x", [], [None], [[]], {}, {"type": "text"}, {"a": {"b": [1]}}]
    for name in MessagesRequest.model_fields:
        for value in odd:
            answer: httpx2.Response = await server.client.post(PATH, json={**BODY, name: value})
            assert answer.status_code in (200, 400, 404), (name, value, answer.text)
            if answer.status_code != 200:
                error_of(answer)
