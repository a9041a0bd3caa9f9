"""Answers of the pocket model that have to follow a schema, beside others. Skipped where it is not made."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from mlx_backend.factory import create_engine
from mlx_backend.interface import EngineConfig, SchedulerConfig
from server import pocket
from server.app import create_app
from server.config import Config
from server.service.registry import ModelRegistry, ServedModel
from server.text.tokenizer import load_tokenizer
from tests.engine_client import until
from tests.schemas import follows, random_schema

pytestmark = [
    pytest.mark.mlx,
    pytest.mark.skipif(not pocket.is_here(), reason="the weights are not there; `make pocket` makes them"),
]

NUM_SCHEMAS = 24
PLAIN = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0, "max_tokens": 60}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    config = EngineConfig(model_path=str(pocket.folder()), scheduler=SchedulerConfig(max_num_seqs=8))
    model = ServedModel("pocket", create_engine(config), lambda: load_tokenizer(pocket.folder()))
    model.start()
    try:
        await until(lambda: model.health().status == "ok")
        transport = httpx.ASGITransport(create_app(Config(), ModelRegistry([model])))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=120) as client:
            yield client
    finally:
        model.close()


async def ask(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post("/v1/chat/completions", json={**PLAIN, **body})
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


async def test_whatever_the_schema_the_answer_follows_it_and_the_others_are_as_ever(client: httpx.AsyncClient) -> None:
    expected = await ask(client)
    source = random.Random(7)
    schemas = [random_schema(source) for _ in range(NUM_SCHEMAS)]
    wishes = [
        {"type": "json_schema", "json_schema": {"name": f"s{number}", "schema": schema}}
        for number, schema in enumerate(schemas)
    ]
    led = [
        ask(client, response_format=wish, temperature=0.5, seed=seed, max_tokens=700)
        for seed, wish in enumerate(wishes)
    ]
    plain = [ask(client) for _ in range(4)]
    answers = await asyncio.gather(*led, *plain)
    for schema, choice in zip(schemas, answers[:NUM_SCHEMAS], strict=True):
        assert choice["finish_reason"] == "stop", choice
        assert follows(json.loads(choice["message"]["content"]), schema), (schema, choice)
    assert answers[NUM_SCHEMAS:] == [expected] * 4


async def test_the_thought_is_free_and_only_the_answer_follows(client: httpx.AsyncClient) -> None:
    question = [{"role": "user", "content": "How many r's are in the word strawberry?"}]
    schema = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}
    wish = {
        "type": "json_schema",
        "json_schema": {"name": "count", "schema": {**schema, "additionalProperties": False}},
    }
    choice = await ask(client, messages=question, response_format=wish, max_tokens=200)
    assert "r1" in choice["message"]["reasoning_content"]
    assert list(json.loads(choice["message"]["content"])) == ["count"]


CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": {**CITY, "additionalProperties": False}}},
    {"type": "function", "function": {"name": "get_time", "parameters": {**CITY, "additionalProperties": False}}},
]


async def test_a_required_call_is_made_whatever_is_said(client: httpx.AsyncClient) -> None:
    choice = await ask(client, tools=TOOLS, tool_choice="required", max_tokens=400)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    for call in choice["message"]["tool_calls"]:
        assert call["function"]["name"] in ("get_weather", "get_time")
        assert json.loads(call["function"]["arguments"])["city"] in ("Rome", "Oslo")


@pytest.mark.parametrize("name", ["get_weather", "get_time"])
async def test_a_named_call_is_the_one_and_only(client: httpx.AsyncClient, name: str) -> None:
    named = {"type": "function", "function": {"name": name}}
    choice = await ask(client, tools=TOOLS, tool_choice=named, parallel_tool_calls=False)
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == name


async def test_a_required_call_and_a_schema_are_refused(client: httpx.AsyncClient) -> None:
    body = {**PLAIN, "tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}}
    answer = await client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_format")
