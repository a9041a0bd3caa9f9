"""`max_tokens` above the room that a prompt leaves, and -1: as many as fit, or a 400, as the server is set."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_backend.api.interface import ContextConfig
from server.config import Config
from tests.fake_engine import FakeEngine, spell
from tests.serving import client_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CONTEXT = 64
ERROR = Config(context=ContextConfig(on_max_tokens="error"))
TRUNCATE = Config(context=ContextConfig(on_overflow="truncate_oldest"))
HEADER = "x-pippin-max-tokens"


def body_of(path: str, **fields: Any) -> dict[str, Any]:
    prompt = {"messages": [{"role": "user", "content": "hi"}]} if path == CHAT else {"prompt": "hi"}
    return {**prompt, **fields}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_what_is_above_the_room_is_cut_to_it(path: str, stream: bool) -> None:
    engine = FakeEngine([spell("x")])
    async with client_of(engine) as client:
        answer = await client.post(path, json=body_of(path, max_tokens=100_000, stream=stream))
    (request,) = engine.requests
    assert request.max_tokens == CONTEXT - len(request.prompt_ids)
    assert (answer.status_code, answer.headers[HEADER]) == (200, str(request.max_tokens))


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_minus_one_is_all_the_room(path: str) -> None:
    engine = FakeEngine([spell("x")])
    async with client_of(engine) as client:
        answer = await client.post(path, json=body_of(path, max_tokens=-1))
    (request,) = engine.requests
    assert request.max_tokens == CONTEXT - len(request.prompt_ids)
    assert answer.status_code == 200
    assert HEADER not in answer.headers


async def test_what_fits_is_left_alone() -> None:
    engine = FakeEngine([spell("x")])
    async with client_of(engine) as client:
        answer = await client.post(COMPLETIONS, json=body_of(COMPLETIONS, max_tokens=7))
        await client.post(CHAT, json=body_of(CHAT, max_completion_tokens=-1))
    assert [request.max_tokens for request in engine.requests] == [7, CONTEXT - len(engine.requests[1].prompt_ids)]
    assert HEADER not in answer.headers


@pytest.mark.parametrize("max_tokens", [100_000, -1])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_server_that_refuses_it(path: str, max_tokens: int) -> None:
    engine = FakeEngine([spell("x")])
    async with client_of(engine, ERROR) as client:
        answer = await client.post(path, json=body_of(path, max_tokens=max_tokens))
    assert answer.status_code == 400
    code = "invalid_value" if max_tokens < 0 else "context_length_exceeded"
    assert answer.json()["error"]["code"] == code
    assert not engine.requests


async def test_the_shortest_of_several_prompts_answers_is_told() -> None:
    engine = FakeEngine([spell("x"), spell("x", index=1)])
    async with client_of(engine) as client:
        answer = await client.post(COMPLETIONS, json={"prompt": ["a", "a" * 20], "max_tokens": 50})
    assert [request.max_tokens for request in engine.requests] == [50, 43]
    assert answer.headers[HEADER] == "43"


async def test_a_large_number_takes_no_turn_away() -> None:
    """Oldest turns go for a prompt that is too long, not for an answer that may be as long as it likes."""
    engine = FakeEngine([spell("x")])
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    async with client_of(engine, TRUNCATE) as client:
        answer = await client.post(CHAT, json={"messages": messages, "max_tokens": 100_000})
    assert "x-pippin-truncated-tokens" not in answer.headers
    assert engine.requests[0].max_tokens == CONTEXT - len(engine.requests[0].prompt_ids)


@pytest.mark.parametrize("value", [-2, 1.5, "many"])
async def test_no_number_of_tokens(value: object) -> None:
    async with client_of(FakeEngine([spell("x")])) as client:
        for path in (CHAT, COMPLETIONS):
            answer = await client.post(path, json=body_of(path, max_tokens=value))
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "max_tokens")
        answer = await client.post(CHAT, json=body_of(CHAT, max_tokens=0))
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "max_tokens")
