"""Responses through the openai SDK: created, streamed, parsed, with tools, kept, and forgotten."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from mlx_backend.api.interface import ContextConfig, ModelInfo
from server.app import create_app
from server.config import Config, ResponsesConfig, SecurityConfig
from server.security import keys
from server.service.registry import ModelRegistry, ServedModel
from tests import serving
from tests.fake_engine import FakeEngine, Script, one_by_one, spell
from tests.server.dialects.openai_chat.test_answers import (
    ANSWER,
    CALL,
    WEATHER,
    Marked,
    prompt_of,
    request_of,
    scripted,
    sdk_of,
)
from tests.server.dialects.openai_responses.test_golden import FLAT, LS, SHELL, SPACE
from tests.serving import wait_until

SAID: Script = [spell("so\0", reason="stop")]
GONE = "resp_" + "0" * 48


class Count(BaseModel):
    n: int


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with scripted(SAID) as client:
        yield client


async def test_a_conversation_is_the_same_prompt_as_in_a_chat(client: httpx.AsyncClient) -> None:
    user, call = {"role": "user", "content": "hi"}, {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    result = {"call_id": "c1", "output": "sunny"}
    items = [
        user,
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c1", **call},
        {"type": "function_call_output", **result},
    ]
    answer = {"role": "assistant", "content": "", "reasoning_content": "hm"}
    messages = [
        {"role": "system", "content": "Be brief."},
        user,
        {**answer, "tool_calls": [{"id": "c1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    options = {"temperature": 0, "seed": 3, "top_k": 4}
    effort = {"reasoning": {"effort": "low"}, "text": {"verbosity": "low"}}
    old = {"messages": messages, "tools": [WEATHER], "max_tokens": 9, "reasoning_effort": "low", "verbosity": "low"}
    new = {"instructions": "Be brief.", "input": items, "tools": [FLAT], "max_output_tokens": 9, **effort}
    found = []
    for path, body in (("/chat/completions", old), ("/responses", new)):
        assert (await client.post(path, json={**body, **options})).status_code == 200
        asked = request_of(client)
        found.append((asked.prompt_ids, asked.max_tokens, asked.sampling))
    assert found[0] == found[1]


async def test_the_sdk_adds_a_stream_up_to_the_whole() -> None:
    strict: Any = {**FLAT, "strict": True}
    async with scripted(one_by_one(ANSWER + "\0", reason="stop")) as client:
        sdk = sdk_of(client)
        async with sdk.responses.stream(model="mock", input="hi", tools=[strict]) as stream:
            kinds = {event.type async for event in stream}
            streamed = await stream.get_final_response()
        whole = await sdk.responses.create(model="mock", input="hi", tools=[strict])
    assert {"response.output_text.delta", "response.function_call_arguments.done", "response.completed"} <= kinds
    assert streamed.output_text == whole.output_text == "I ask."
    assert [item.type for item in streamed.output] == [item.type for item in whole.output]
    calls: Any = [item for item in streamed.output if item.type == "function_call"]
    assert [call.parsed_arguments for call in calls] == [{"city": "Köln"}] * 2


async def test_a_response_is_created_before_its_first_token() -> None:
    is_created = asyncio.Event()
    async with scripted([is_created, *SAID]) as client:
        app: Any = client._transport.app  # type: ignore[attr-defined]

        async def listening(scope: Any, receive: Any, send: Any) -> None:
            async def listen(message: Any) -> None:
                await send(message)
                if b"response.in_progress" in message.get("body", b""):
                    is_created.set()

            await app(scope, receive, listen)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(listening), base_url="http://localhost") as other:
            answer = await asyncio.wait_for(other.post("/responses", json={"input": "hi", "stream": True}), 60)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["response"]["model"] == events[-1]["response"]["model"] == "mock"


async def test_tokens_are_counted_without_an_answer(client: httpx.AsyncClient) -> None:
    sdk = sdk_of(client)
    tools: Any = [FLAT, SPACE]
    first = await sdk.responses.create(model="mock", input="hi", tools=tools)
    counted = await sdk.responses.input_tokens.count(
        model="mock", input="more", tools=tools, previous_response_id=first.id
    )
    answer = await sdk.responses.create(model="mock", input="more", tools=tools, previous_response_id=first.id)
    assert answer.usage is not None
    assert counted.input_tokens == answer.usage.input_tokens > 100


async def test_the_sdk_parses_a_structured_answer() -> None:
    async with scripted([spell('{"n":4}\0', reason="stop")]) as client:
        answer = await sdk_of(client).responses.parse(model="mock", input="hi", text_format=Count)
        assert request_of(client).grammar is not None
    assert answer.output_parsed == Count(n=4)


async def test_a_custom_tool_and_what_is_left_out() -> None:
    async with scripted([spell(LS + "\0", reason="stop")]) as client:
        body = {"input": "hi", "tools": [SHELL, {"type": "web_search"}], "mood": 1}
        answer = await client.post("/responses", json=body)
    assert answer.headers["x-pippin-ignored-fields"] == "mood, tools.web_search"
    (call,) = answer.json()["output"]
    assert (call["type"], call["input"]) == ("custom_tool_call", "ls -l")


async def test_a_turn_goes_on_from_a_stored_one() -> None:
    async with scripted([spell(CALL + "\0", reason="stop")]) as client:
        sdk = sdk_of(client)
        first = await sdk.responses.create(model="mock", input="hi", tools=[FLAT], instructions="Be brief.")  # type: ignore[list-item]
        (call,) = first.output
        assert call.type == "function_call"
        sent: Any = [
            {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
            {"type": "item_reference", "id": call.id},
        ]
        second = await sdk.responses.create(model="mock", input=sent, previous_response_id=first.id)
        asked = prompt_of(client)
        kept = await sdk.responses.retrieve(second.id)
        items = [item async for item in sdk.responses.input_items.list(second.id, order="asc", limit=2)]
    assert "Be brief." not in asked  # those of the first request alone
    assert all(word in asked for word in ("hi", "sunny"))
    assert kept.to_dict() == second.to_dict()
    assert [item.type for item in items] == ["message", "function_call", "function_call_output", "function_call"]


async def test_a_page_of_items(client: httpx.AsyncClient) -> None:
    items = [{"role": "user", "content": str(number)} for number in range(5)]
    id = (await client.post("/responses", json={"input": items})).json()["id"]

    async def page(**query: Any) -> tuple[list[str], bool]:
        found = (await client.get(f"/responses/{id}/input_items", params=query)).json()
        return [item["content"][0]["text"] for item in found["data"]], found["has_more"]

    assert await page(limit=2) == (["4", "3"], True)
    assert await page(order="asc") == (["0", "1", "2", "3", "4"], False)
    last = (await client.get(f"/responses/{id}/input_items", params={"limit": 4})).json()["last_id"]
    assert await page(after=last) == (["0"], False)
    for query in ({"after": "x"}, {"limit": 0}, {"limit": "x"}, {"order": "up"}):
        answer = await client.get(f"/responses/{id}/input_items", params=query)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(query)))


async def test_what_is_deleted_or_not_to_be_stored_is_gone(client: httpx.AsyncClient) -> None:
    sdk = sdk_of(client)
    kept = await sdk.responses.create(model="mock", input="hi")
    after = await sdk.responses.create(model="mock", input="more", previous_response_id=kept.id)
    await sdk.responses.delete(kept.id)
    passing = await sdk.responses.create(model="mock", input="hi", store=False)
    for id in (kept.id, passing.id, GONE, "x"):
        with pytest.raises(openai.NotFoundError, match="not found"):
            await sdk.responses.retrieve(id)
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.delete(id)
    with pytest.raises(openai.BadRequestError, match=r"Previous response with id '.*' not found") as error:
        await sdk.responses.create(model="mock", input="so", previous_response_id=after.id)
    assert (error.value.code, error.value.param) == ("previous_response_not_found", "previous_response_id")


async def test_an_answer_that_is_cut_is_kept_and_one_that_failed_is_not() -> None:
    async with scripted([spell("so")]) as client:
        body = {"input": "hi", "max_output_tokens": 2, "stream": True}
        event = json.loads((await client.post("/responses", json=body)).text.strip().rpartition("data: ")[2])
        assert event["type"] == "response.incomplete"
        assert (await client.get(f"/responses/{event['response']['id']}")).json() == event["response"]


async def test_no_more_is_read_again_than_a_body_may_have() -> None:
    engine = FakeEngine(SAID, info=ModelInfo(context_limit=4096, vocab_size=260))
    async with serving.client_of(engine, Config(security=SecurityConfig(max_body_bytes=1500))) as client:
        first = (await client.post("/v1/responses", json={"input": "hi"})).json()
        body = {"input": "more", "previous_response_id": first["id"]}
        second = (await client.post("/v1/responses", json=body)).json()
        third = (await client.post("/v1/responses", json={**body, "previous_response_id": second["id"]})).json()
    assert second["status"] == "completed"
    assert (third["error"]["code"], third["error"]["param"]) == ("request_too_large", "previous_response_id")


async def test_references_stand_for_no_more_than_a_body_may_have() -> None:
    engine = FakeEngine(SAID, info=ModelInfo(context_limit=4096, vocab_size=260))
    async with serving.client_of(engine, Config(security=SecurityConfig(max_body_bytes=3000))) as client:
        first = (await client.post("/v1/responses", json={"input": "a" * 1000})).json()
        listed = (await client.get(f"/v1/responses/{first['id']}/input_items")).json()["data"]
        reference = {"type": "item_reference", "id": listed[0]["id"]}
        few = await client.post("/v1/responses", json={"input": [reference] * 2})
        many = (await client.post("/v1/responses", json={"input": [reference] * 9})).json()
    assert few.status_code == 200
    assert (many["error"]["code"], many["error"]["param"]) == ("request_too_large", "input.2.id")


async def test_nothing_is_cancelled(client: httpx.AsyncClient) -> None:
    id = (await client.post("/responses", json={"input": "hi"})).json()["id"]
    answer = await client.post(f"/responses/{id}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "not_cancellable")
    assert (await client.post(f"/responses/{GONE}/cancel")).status_code == 404
    assert (await client.get(f"/responses/{id}?stream=true")).status_code == 400


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "input"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": ["hi"]}, "input"),
    ({"input": "\ud800"}, "input"),
    ({"input": "hi", "background": True}, "background"),
    ({"input": "hi", "conversation": "conv_1"}, "conversation"),
    ({"input": "hi", "prompt": {"id": "p"}}, "prompt"),
    ({"input": "hi", "n": 2}, "n"),
    ({"input": "hi", "include": ["everything"]}, "include.0"),
    ({"input": "hi", "metadata": {"a": 1}}, "metadata.a"),
    ({"input": "hi", "metadata": {"a": "\ud800"}}, "metadata.a"),
    ({"input": "hi", "truncation": "oldest"}, "truncation"),
    ({"input": "hi", "reasoning": {"effort": "much"}}, "reasoning.effort"),
    ({"input": "hi", "text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"input": "hi", "text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
    ({"input": "hi", "text": {"format": {"type": "json_object"}}, "guided_regex": "a"}, "text.format"),
    ({"input": "hi", "max_tokens": 1, "max_output_tokens": 2}, "max_output_tokens"),
    ({"input": "hi", "max_output_tokens": 0}, "max_output_tokens"),
    ({"input": "hi", "tools": [{"type": "x"}]}, "tools.0.type"),
    ({"input": "hi", "tool_choice": "required"}, "tool_choice"),
    ({"input": [{"type": "item_reference", "id": f"msg_{'0' * 48}_0"}]}, "input.0.id"),
    ({"input": [{"id": "x"}]}, "input.0.id"),
    ({"input": "hi", "previous_response_id": GONE}, "previous_response_id"),
    ({"input": [{"role": "user", "content": "a"}, {"role": "user", "content": "a", "id": "\ud800"}]}, "input.1"),
    ({"input": [{"role": "user", "content": "a", "phase": float("inf")}]}, "input.0"),
    ({"input": "hi", "tools": [{**SHELL, "x": "\ud800"}]}, "tools"),
]


async def test_a_body_that_is_wrong_is_refused_with_its_place(client: httpx.AsyncClient) -> None:
    for body, param in WRONG:
        answer = await client.post("/responses", content=json.dumps(body), headers={"Content-Type": "application/json"})
        found = (answer.status_code, answer.json()["error"]["param"])
        assert found == (404 if param == "input.0.id" else 400, param), body


async def test_the_oldest_turns_are_left_out_where_the_request_says_so() -> None:
    model = ServedModel("mock", FakeEngine(SAID, info=ModelInfo(context_limit=160, vocab_size=260)), Marked)
    model.start()
    wait_until(lambda: model.tokenizer is not None)
    items = [{"role": role, "content": role[0] * 40} for role in ("user", "assistant") * 3] + [
        {"role": "user", "content": "hi"}
    ]
    app = create_app(Config(context=ContextConfig(on_overflow="error")), ModelRegistry([model]))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost/v1") as client:
        body = {"input": items, "max_output_tokens": 8}
        refused = await client.post("/responses", json=body)
        cut = await client.post("/responses", json={**body, "truncation": "auto"})
    model.close()
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert cut.status_code == 200 and int(cut.headers["x-pippin-truncated-tokens"]) > 0
    assert cut.json()["truncation"] == "auto"


async def test_a_key_sees_its_own_responses_alone(tmp_path: Path) -> None:
    alice, bob = ({"Authorization": f"Bearer {keys.add(tmp_path / 'keys', name)}"} for name in ("alice", "bob"))
    security = SecurityConfig(keys_file=str(tmp_path / "keys"))
    async with serving.client_of(FakeEngine(SAID), Config(security=security)) as client:
        id = (await client.post("/v1/responses", json={"input": "hi"}, headers=alice)).json()["id"]
        item = f"msg_{id.removeprefix('resp_')}_i0"
        before = {"input": "more", "previous_response_id": id}
        reference = {"input": [{"type": "item_reference", "id": item}]}
        statuses = {
            name: [
                (await client.get(f"/v1/responses/{id}", headers=key)).status_code,
                (await client.get(f"/v1/responses/{id}/input_items", headers=key)).status_code,
                (await client.post("/v1/responses", json=before, headers=key)).status_code,
                (await client.post("/v1/responses", json=reference, headers=key)).status_code,
                (await client.delete(f"/v1/responses/{id}", headers=key)).status_code,
            ]
            for name, key in (("bob", bob), ("alice", alice))
        }
    assert statuses == {"bob": [404, 404, 400, 404, 404], "alice": [200] * 5}


async def test_a_server_that_keeps_nothing_says_so() -> None:
    config = Config(responses=ResponsesConfig(max_stored=0))
    async with serving.client_of(FakeEngine(SAID), config) as client:
        answer = (await client.post("/v1/responses", json={"input": "hi"})).json()
        refused = await client.post("/v1/responses", json={"input": "hi", "store": True})
        assert (await client.get(f"/v1/responses/{answer['id']}")).status_code == 404
    assert answer["store"] is False
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "store")
