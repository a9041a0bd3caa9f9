"""Answers of the pocket model that have to follow a schema, beside others. Skipped where it is not made."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from mlx_backend.api.interface import EngineConfig, SchedulerConfig
from mlx_backend.factory import create_engine
from server import pocket
from server.app import create_app
from server.config import Config
from server.service.registry import ModelRegistry, ServedModel
from server.text.tokenizer import load_tokenizer
from tests.schemas import follows, random_schema
from tests.serving import wait_until

pytestmark = [
    pytest.mark.mlx,
    pytest.mark.skipif(not pocket.is_here(), reason="the weights are not there; `make pocket` makes them"),
]

AT_ONCE = 16
"""Twice the rows of the batch, so that it is full until the last."""
PLAIN = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0, "max_tokens": 60}


@pytest.fixture(scope="module")
def model() -> Iterator[ServedModel]:
    config = EngineConfig(model_path=str(pocket.folder()), scheduler=SchedulerConfig(max_num_seqs=8))
    model = ServedModel("pocket", create_engine(config), lambda: load_tokenizer(pocket.folder()))
    model.start()
    try:
        wait_until(lambda: model.health().status == "ok")
        yield model
    finally:
        model.close()


@pytest.fixture
async def client(model: ServedModel) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(Config(), ModelRegistry([model])))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=120) as client:
        yield client


async def ask(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post("/v1/chat/completions", json={**PLAIN, **body})
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


async def check_schemas(client: httpx.AsyncClient, num_schemas: int, seed: int) -> None:
    """Every answer follows its schema, and every plain one among them, a fifth of all, is what it is alone."""
    expected = await ask(client)
    source = random.Random(seed)
    schemas = [None if number % 5 == 4 else random_schema(source) for number in range(num_schemas * 5 // 4)]
    slots = asyncio.Semaphore(AT_ONCE)

    async def answer(seed: int, schema: dict[str, Any] | None) -> dict[str, Any]:
        async with slots:
            if schema is None:
                return await ask(client)
            wish = {"type": "json_schema", "json_schema": {"name": f"s{seed}", "schema": schema}}
            return await ask(client, response_format=wish, temperature=0.5, seed=seed, max_tokens=700)

    answers = await asyncio.gather(*(answer(seed, schema) for seed, schema in enumerate(schemas)))
    for schema, choice in zip(schemas, answers, strict=True):
        if schema is None:
            assert choice == expected
            continue
        assert choice["finish_reason"] == "stop", (schema, choice)
        assert follows(json.loads(choice["message"]["content"]), schema), (schema, choice)


async def test_whatever_the_schema_the_answer_follows_it_and_the_others_are_as_ever(client: httpx.AsyncClient) -> None:
    await check_schemas(client, 16, seed=7)


@pytest.mark.soak
async def test_two_hundred_schemas(client: httpx.AsyncClient) -> None:
    await check_schemas(client, 200, seed=8)


async def test_the_reasoning_is_free_and_only_the_answer_follows(client: httpx.AsyncClient) -> None:
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


async def test_a_call_or_an_answer_in_the_form(client: httpx.AsyncClient) -> None:
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}}
    for choice in ("required", "auto"):
        for seed in range(4):
            asked = {**PLAIN, **form, "tools": TOOLS, "tool_choice": choice, "temperature": 1.5, "seed": seed}
            answer = await client.post("/v1/chat/completions", json={**asked, "max_tokens": 200})
            assert answer.status_code == 200, answer.text
            told = answer.json()["choices"][0]
            if told["message"].get("tool_calls"):
                (call, *_) = told["message"]["tool_calls"]
                assert call["function"]["name"] in ("get_weather", "get_time")
                json.loads(call["function"]["arguments"])
            else:
                assert choice == "auto"
                assert follows(json.loads(told["message"]["content"]), CITY)


async def test_a_strict_call_of_its_own_will_holds_to_the_schema(client: httpx.AsyncClient) -> None:
    """Which the question does not: the model would name the city that it was asked about."""
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    function = {"name": "get_weather", "description": "Weather in a city", "parameters": CITY}
    loose, held, other = await asyncio.gather(
        ask(client, messages=question, tools=[{"type": "function", "function": function}]),
        ask(client, messages=question, tools=[{"type": "function", "function": {**function, "strict": True}}]),
        ask(client, tools=[{"type": "function", "function": {**function, "strict": True}}]),
    )
    (call,), (right,) = (choice["message"]["tool_calls"] for choice in (loose, held))
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    assert right["function"]["name"] == call["function"]["name"]
    assert json.loads(right["function"]["arguments"])["city"] in ("Rome", "Oslo")
    assert other["message"]["content"]
    assert other["finish_reason"] == "stop"


async def test_a_strict_schema_that_cannot_be_honoured_is_refused(client: httpx.AsyncClient) -> None:
    function = {"name": "f", "strict": True, "parameters": {"type": "object", "patternProperties": {"a": {}}}}
    body = {**PLAIN, "tools": [{"type": "function", "function": function}]}
    answer = await client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
    function["strict"] = False
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
