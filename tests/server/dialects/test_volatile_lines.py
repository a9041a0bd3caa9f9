"""Volatile lines of system prompts through every API: prompts that begin alike, the header, the setting, the counts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio

from mlx_backend.api.interface import ModelInfo
from server.config import ApiConfig, Config
from server.dialects.volatile_lines import VOLATILE_HEADER
from tests.fake_engine import FakeEngine, spell
from tests.serving import client_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

BILLING = "x-anthropic-billing-header: cc_version=2.1; cch={};"
RULES = "You help. " * 8
MOVED = b"Hello\n\n<system-reminder>\nCurrent time is 10:46:00.\n</system-reminder>\nassistant:"
SAID = "billing-header=dropped, clock=moved"


def system(number: int) -> str:
    return f"{BILLING.format(number)}\nCurrent time is 10:{number}:00. Today's date is 2026-11-28.\n{RULES}"


def chat(number: int) -> tuple[str, dict[str, Any]]:
    said = [{"role": "system", "content": system(number)}, {"role": "user", "content": "Hello"}]
    return "/v1/chat/completions", {"messages": said}


def messages(number: int) -> tuple[str, dict[str, Any]]:
    blocks = [{"type": "text", "text": text} for text in system(number).split("\n")]
    return "/v1/messages", {"system": blocks, "messages": [{"role": "user", "content": "Hello"}]}


def responses(number: int) -> tuple[str, dict[str, Any]]:
    return "/v1/responses", {"instructions": system(number), "input": "Hello"}


def ollama_chat(number: int) -> tuple[str, dict[str, Any]]:
    return "/api/chat", {"model": "mock", **chat(number)[1], "stream": False}


def ollama_generate(number: int) -> tuple[str, dict[str, Any]]:
    return "/api/generate", {"model": "mock", "system": system(number), "prompt": "Hello", "stream": False}


REQUESTS = [chat, messages, responses, ollama_chat, ollama_generate]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["move", "keep"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, httpx.AsyncClient, FakeEngine]]:
    engine = FakeEngine([spell("x")], info=ModelInfo(context_limit=4096, vocab_size=260))
    async with client_of(engine, Config(api=ApiConfig(volatile_lines=request.param))) as client:
        yield request.param, client, engine


@pytest.mark.parametrize("ask", REQUESTS)
async def test_every_api(
    server: tuple[str, httpx.AsyncClient, FakeEngine], ask: Callable[[int], tuple[str, dict[str, Any]]]
) -> None:
    setting, client, engine = server
    prompts = []
    for number in (45, 46):
        path, body = ask(number)
        answer = await client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.headers.get(VOLATILE_HEADER) == (SAID if setting == "move" else None)
        prompts.append(bytes(engine.requests[-1].prompt_ids))
    if setting == "keep":
        assert f"system: {system(46)}\nuser: Hello\nassistant:".encode() == prompts[1]
        return
    assert prompts[1] == f"system: Today's date is 2026-11-28.\n{RULES}\nuser: ".encode() + MOVED
    assert prompts[0] == prompts[1].replace(b"10:46", b"10:45")


async def test_counts_are_those_of_the_prompt(server: tuple[str, httpx.AsyncClient, FakeEngine]) -> None:
    setting, client, _ = server
    counts = []
    for path, body in (
        ("/v1/messages/count_tokens", messages(46)[1]),
        ("/v1/responses/input_tokens", responses(46)[1]),
        ("/tokenize", chat(46)[1]),
    ):
        answer = await client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.headers.get(VOLATILE_HEADER) == (SAID if setting == "move" else None)
        found = answer.json()
        counts.append(found.get("input_tokens", found.get("count")))
    used = (await client.post("/v1/chat/completions", json=chat(46)[1])).json()["usage"]["prompt_tokens"]
    assert counts == [used] * 3


async def test_a_prompt_without_volatile_lines_has_no_header(
    server: tuple[str, httpx.AsyncClient, FakeEngine],
) -> None:
    _, client, engine = server
    answer = await client.post("/v1/completions", json={"prompt": system(46)})
    assert VOLATILE_HEADER not in answer.headers
    assert bytes(engine.requests[-1].prompt_ids[1:]) == system(46).encode()  # after the beginning of the sequence
    answer = await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": system(46)}]})
    assert VOLATILE_HEADER not in answer.headers
