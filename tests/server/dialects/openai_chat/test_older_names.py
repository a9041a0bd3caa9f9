"""`functions`, other names of fields and paths, and thoughts that are hidden or renamed, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from mlx_backend.api.interface import ModelInfo
from server.config import ApiConfig, Config
from tests.fake_engine import FakeEngine, spell
from tests.server.dialects.openai_chat.test_answers import ANSWER, WEATHER, Marked, sdk_of
from tests.serving import client_of

HI: list[Any] = [{"role": "user", "content": "hi"}]
FUNCTION = WEATHER["function"]


@asynccontextmanager
async def serving(config: Config | None = None) -> AsyncIterator[httpx.AsyncClient]:
    engine = FakeEngine([spell(ANSWER + "\0", reason="stop")], info=ModelInfo(context_limit=4096, vocab_size=260))
    async with client_of(engine, config, tokenizer=Marked) as client:
        yield client


async def test_functions_end_to_end() -> None:
    async with serving() as client:
        sdk = sdk_of(client)
        whole = await sdk.chat.completions.create(model="mock", messages=HI, functions=[FUNCTION])
        stream = await sdk.chat.completions.create(model="mock", messages=HI, functions=[FUNCTION], stream=True)
        chunks = [chunk async for chunk in stream]
    (choice,) = whole.choices
    assert choice.finish_reason == "function_call"
    assert choice.message.function_call is not None
    assert (choice.message.function_call.name, choice.message.function_call.arguments) == (
        "get_weather",
        '{"city": "Köln"}',
    )
    assert choice.message.tool_calls is None
    called = [chunk.choices[0].delta.function_call for chunk in chunks if chunk.choices[0].delta.function_call]
    assert [(call.name, call.arguments) for call in called] == [("get_weather", '{"city": "Köln"}')]
    assert chunks[-1].choices[0].finish_reason == "function_call"


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions"])
async def test_the_path_without_its_version(path: str) -> None:
    async with serving() as client:
        answer = await client.post(path, json={"messages": HI})
        assert answer.status_code == 200
        assert (await client.post("/completions", json={"prompt": "hi"})).status_code == 200
        assert path == "/v1/chat/completions" or path not in (await client.get("/openapi.json")).json()["paths"]


@pytest.mark.parametrize(
    ("field", "body", "names"),
    [
        ("reasoning_content", {}, {"reasoning_content"}),
        ("reasoning", {}, {"reasoning"}),
        ("both", {}, {"reasoning", "reasoning_content"}),
        ("none", {}, set()),
        ("both", {"include_reasoning": False}, set()),
        ("reasoning_content", {"reasoning": {"exclude": True}}, set()),
    ],
)
async def test_where_reasoning_are(field: Any, body: dict[str, Any], names: set[str]) -> None:
    async with serving(Config(api=ApiConfig(thoughts_field=field))) as client:
        answer = (await client.post("/v1/chat/completions", json={"messages": HI, **body})).json()
    message = answer["choices"][0]["message"]
    assert {name: message[name] for name in ("reasoning", "reasoning_content") if name in message} == dict.fromkeys(
        names, "hm"
    )
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
