"""Reasoning and calls end to end: what the openai SDK makes of what a scripted engine, and the pocket model, write."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from mlx_backend.api.interface import GenerationRequest, ModelInfo
from server import pocket
from server.app import create_app
from server.config import Config
from server.models import build_model
from server.service.registry import ModelRegistry, ServedModel
from server.text.parsers.parts import ChatFormat
from server.text.tokenizer import ByteTokenizer
from tests.fake_engine import FakeEngine, Script, one_by_one, spell
from tests.server.text.parsers.test_chat import FORMAT
from tests.serving import wait_until

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '<tool>{"name": "get_weather", "arguments": {"city": "Köln"}}</tool>'
ANSWER = f"<think>\nhm\n</think>\n\nI ask. {CALL}\n{CALL}"


def asked(question: str) -> Any:
    return [{"role": "user", "content": question}]


class Marked(ByteTokenizer):
    """Bytes of a model that marks thoughts and calls; its template shows tools, and opens a thought where told."""

    chat_format = FORMAT

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        template_kwargs: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        shown = json.dumps(tools) if tools else ""
        return shown + super().render_chat(messages, template_kwargs) + template_kwargs.get("opening", "")


class Plain(ByteTokenizer):
    chat_format = ChatFormat(think_start="<think>", think_end="</think>")


def over(model: ServedModel) -> httpx.AsyncClient:
    app = create_app(Config(), ModelRegistry([model]))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost/v1")


@asynccontextmanager
async def client_of(model: ServedModel) -> AsyncIterator[httpx.AsyncClient]:
    try:
        async with over(model) as client:
            yield client
    finally:
        model.close()


@asynccontextmanager
async def scripted(script: Script, tokenizer: type[ByteTokenizer] = Marked) -> AsyncIterator[httpx.AsyncClient]:
    model = ServedModel("mock", FakeEngine(script, info=ModelInfo(context_limit=4096, vocab_size=260)), tokenizer)
    model.start()
    wait_until(lambda: model.tokenizer is not None)
    async with client_of(model) as client:
        yield client


def sdk_of(client: Any) -> openai.AsyncOpenAI:
    """Over the client, whichever library's the SDK expects it to be."""
    return openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", max_retries=0, http_client=client)


def request_of(client: httpx.AsyncClient) -> GenerationRequest:
    """What the scripted engine was asked last."""
    transport: Any = client._transport
    (model,) = transport.app.parts.registry.list()
    request: GenerationRequest = model.engine.requests[-1]
    return request


def prompt_of(client: httpx.AsyncClient) -> str:
    return bytes(request_of(client).prompt_ids).decode()


async def test_reasoning_content_and_calls_are_told_apart() -> None:
    async with scripted([spell(ANSWER + "\0", reason="stop")]) as client:
        answer = await sdk_of(client).chat.completions.create(model="mock", messages=asked("hi"), tools=[WEATHER])
        assert prompt_of(client).startswith('[{"type": "function", "function": {"name": "get_weather"')
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I ask.")
    assert choice.message.reasoning_content == "hm"  # type: ignore[attr-defined]
    calls = choice.message.tool_calls or []
    assert [(call.type, call.function.name, call.function.arguments) for call in calls if call.type == "function"] == [
        ("function", "get_weather", '{"city": "Köln"}')
    ] * 2
    assert len({call.id for call in calls}) == 2
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == len("<think>\nhm\n</think>\n\n")


async def test_the_sdk_adds_a_stream_up_to_the_whole() -> None:
    strict: Any = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    async with scripted(one_by_one(ANSWER + "\0", reason="stop")) as client:
        sdk = sdk_of(client)
        async with sdk.chat.completions.stream(model="mock", messages=asked("hi"), tools=[strict]) as stream:
            kinds = {event.type async for event in stream}
            streamed = (await stream.get_final_completion()).choices[0]
        whole = (await sdk.chat.completions.create(model="mock", messages=asked("hi"), tools=[strict])).choices[0]
    assert {"content.delta", "tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert (streamed.finish_reason, streamed.message.content) == ("tool_calls", "I ask.")
    assert streamed.message.reasoning_content == whole.message.reasoning_content  # type: ignore[attr-defined]
    for mine, other in zip(streamed.message.tool_calls or [], whole.message.tool_calls or [], strict=True):
        assert other.type == "function"
        assert mine.function.parsed_arguments == json.loads(other.function.arguments) == {"city": "Köln"}


async def test_choices_are_parsed_apart_from_each_other() -> None:
    texts = (ANSWER, "<think>so", "plain")
    letters = [spell(text + "\0", index=index, reason="stop") for index, text in enumerate(texts)]
    longest = max(map(len, letters))
    script = [tuple(each[place] for each in letters if place < len(each)) for place in range(longest)]
    async with scripted(script) as client:
        answer = await sdk_of(client).chat.completions.create(model="mock", messages=asked("hi"), tools=[WEATHER], n=3)
    told = [(choice.finish_reason, choice.message.content) for choice in answer.choices]
    assert told == [("tool_calls", "I ask."), ("stop", ""), ("stop", "plain")]
    assert answer.choices[1].message.reasoning_content == "so"  # type: ignore[attr-defined]


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_are_of_content_alone(stream: bool) -> None:
    text = f"<think>hm</think>\nabc {CALL}"
    async with scripted([spell(text + "\0", reason="stop", logprob=-0.5)]) as client:
        body = {"messages": asked("hi"), "tools": [WEATHER], "logprobs": True, "stream": stream}
        answer = await client.post("/chat/completions", json=body)
    if stream:
        events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: {")]
        told = [choice["logprobs"] for event in events for choice in json.loads(event)["choices"]]
    else:
        told = [answer.json()["choices"][0]["logprobs"]]
    assert "".join(token["token"] for logprobs in told if logprobs for token in logprobs["content"]) == "abc"


async def test_without_parallel_calls_the_first_is_the_last() -> None:
    async with scripted([spell(ANSWER + "more", reason=None)]) as client:
        body = {"messages": asked("hi"), "tools": [WEATHER], "parallel_tool_calls": False}
        (choice,) = (await client.post("/chat/completions", json=body)).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert len(choice["message"]["tool_calls"]) == 1


async def test_a_call_is_text_where_no_tools_are_to_be_used() -> None:
    for extra in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        async with scripted([spell(ANSWER + "\0", reason="stop")]) as client:
            answer = await client.post("/chat/completions", json={"messages": asked("hi"), **extra})
            assert prompt_of(client) == "user: hi\nassistant:"
        (choice,) = answer.json()["choices"]
        assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", f"I ask. {CALL}\n{CALL}")


async def test_a_reasoning_that_the_prompt_opened() -> None:
    async with scripted([spell("hm\n</think>\n4\0", reason="stop")]) as client:
        body = {"messages": asked("2 + 2?"), "chat_template_kwargs": {"opening": "<think>\n"}}
        (choice,) = (await client.post("/chat/completions", json=body)).json()["choices"]
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("hm", "4")


async def test_an_answer_goes_on_where_the_last_message_stops() -> None:
    """Only what is new is answered, white space and tags of it included."""
    async with scripted([spell(" is <think> 4.\0", reason="stop")]) as client:
        body = {"messages": [*asked("2 + 2?"), {"role": "assistant", "content": "It ", "prefix": True}]}
        (choice,) = (await client.post("/chat/completions", json=body)).json()["choices"]
        assert prompt_of(client) == "user: 2 + 2?\nassistant: It "
    assert choice["message"]["content"] == " is <think> 4."


async def test_a_reasoning_goes_on_where_the_last_message_stops() -> None:
    async with scripted([spell(" so</think>4\0", reason="stop")]) as client:
        last = {"role": "assistant", "reasoning_content": "Hm,", "content": ""}
        body = {"messages": [*asked("2 + 2?"), last], "continue_final_message": True}
        answer = (await client.post("/chat/completions", json=body)).json()
        assert prompt_of(client) == "user: 2 + 2?\nassistant:<think>\nHm,"
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (" so", "4")
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": len(" so</think>")}


@pytest.mark.parametrize("name", ["thinking_budget", "thinking_token_budget"])
async def test_a_thinking_budget_is_a_state_that_closes_the_reasoning(name: str) -> None:
    async with scripted([spell("hm</think>4\0", reason="stop")]) as client:
        body = {"messages": asked("2 + 2?"), "chat_template_kwargs": {"opening": "<think>"}, name: 2}
        answer = await client.post("/chat/completions", json=body)
        assert "X-Pippin-Ignored-Fields" not in answer.headers
        grammar = request_of(client).grammar
    assert grammar is not None
    state = grammar.start()
    assert state.num_free_tokens == 2
    for token_id in b"hm":
        assert state.allowed() is None
        state.accept(token_id)
    for token_id in b"</think>":
        assert state.allowed() == (1 << token_id).to_bytes(4 * (token_id // 32 + 1), "little")
        state.accept(token_id)
    assert state.allowed() is None


async def test_a_thinking_budget_that_cannot_be() -> None:
    async with scripted([spell("x")], ByteTokenizer) as client:
        for body, code in (
            ({"thinking_budget": 5}, "unsupported_parameter"),
            ({"thinking_budget": -1}, "invalid_value"),
        ):
            refused = await client.post("/chat/completions", json={"messages": asked("hi"), **body})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "thinking_budget")
            assert refused.json()["error"]["code"] == code
        refused = await client.post("/completions", json={"prompt": "hi", "thinking_budget": 5})
        assert refused.json()["error"]["param"] == "thinking_budget"
    async with scripted([spell("x")]) as client:
        combined = {"messages": asked("hi"), "thinking_budget": 5, "allowed_token_ids": [65]}
        refused = await client.post("/chat/completions", json=combined)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "allowed_token_ids")


async def test_a_plain_completion_is_raw_text() -> None:
    async with scripted([spell(ANSWER + "\0", reason="stop")]) as client:
        answer = (await client.post("/completions", json={"prompt": "hi"})).json()
    assert answer["choices"][0]["text"] == ANSWER
    assert "completion_tokens_details" not in answer["usage"]


async def test_a_model_that_cannot_call_is_offered_no_tools() -> None:
    async with scripted([spell("x")], Plain) as client:
        refused = await client.post("/chat/completions", json={"messages": asked("hi"), "tools": [WEATHER]})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
        body = {"messages": asked("hi"), "tools": [WEATHER], "tool_choice": "none"}
        assert (await client.post("/chat/completions", json=body)).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [WEATHER], "tool_choice": "maybe"}, "tool_choice"),
        ({"functions": [WEATHER["function"]], "tools": [WEATHER]}, "functions"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages.0.content"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "sometimes"}}, "tool_choice"),
    ],
)
async def test_refusals_name_what_they_are_about(body: dict[str, Any], param: str) -> None:
    async with scripted([spell("x")]) as client:
        refused = await client.post("/chat/completions", json={"messages": asked("hi"), **body})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


# --- the pocket model


@pytest.fixture(scope="module")
def pocket_model() -> Iterator[ServedModel]:
    model = build_model(Config(model="pocket"))
    model.start()
    try:
        wait_until(lambda: model.health().status != "loading")
        yield model
    finally:
        model.close()


@pytest.fixture
async def pocket_sdk(pocket_model: ServedModel) -> AsyncIterator[openai.AsyncOpenAI]:
    async with over(pocket_model) as client:
        yield sdk_of(client)


@pytest.mark.mlx
@pytest.mark.skipif(not pocket.is_here(), reason="the weights are not there; `make pocket` makes them")
async def test_the_pocket_model_thinks_calls_and_reads_what_came_of_it(pocket_sdk: openai.AsyncOpenAI) -> None:
    create = pocket_sdk.chat.completions.create
    counted = await create(model="pocket", messages=asked("How many r's are in the word strawberry?"), temperature=0)
    question = asked("What is the weather in Paris?")
    called = await create(model="pocket", messages=question, tools=[WEATHER], temperature=0)
    message: Any = called.choices[0].message
    result = {
        "role": "tool",
        "tool_call_id": message.tool_calls[0].id,
        "content": '{"sky": "sunny", "degrees": 21}',
    }
    history: Any = [*question, message.model_dump(), result]
    told = await create(model="pocket", messages=history, tools=[WEATHER], temperature=0)
    quiet = await create(model="pocket", messages=asked("Who are you?"), temperature=0, reasoning_effort="none")
    assert "3" in (counted.choices[0].message.content or "")
    assert "3" in counted.choices[0].message.reasoning_content  # type: ignore[attr-defined]
    assert "think>" not in counted.choices[0].message.to_json()
    assert (called.choices[0].finish_reason, message.content) == ("tool_calls", None)
    (call,) = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    assert "21" in (told.choices[0].message.content or "")
    assert not hasattr(quiet.choices[0].message, "reasoning_content")


@pytest.mark.mlx
@pytest.mark.skipif(not pocket.is_here(), reason="the weights are not there; `make pocket` makes them")
async def test_the_pocket_model_goes_on_with_its_own_words_as_before(pocket_sdk: openai.AsyncOpenAI) -> None:

    async def ask(last: dict[str, Any] | None = None) -> Any:
        messages = asked("What is 47 + 85?")
        if last is not None:
            messages.append({"role": "assistant", "content": "", **last, "prefix": True})
        answer = await pocket_sdk.chat.completions.create(model="pocket", messages=messages, temperature=0)
        return answer.choices[0].message

    whole = await ask()
    reasoning, content = whole.reasoning_content, whole.content
    cut = reasoning.index(" ", len(reasoning) // 2)
    thinking = await ask({"reasoning_content": reasoning[:cut]})
    assert (thinking.reasoning_content, thinking.content) == (reasoning[cut:], content)
    answering = await ask({"reasoning_content": reasoning, "content": content[:7]})
    assert answering.content == content[7:]
    assert getattr(answering, "reasoning_content", None) is None


@pytest.mark.mlx
@pytest.mark.skipif(not pocket.is_here(), reason="the weights are not there; `make pocket` makes them")
async def test_the_pocket_model_thinks_no_more_than_it_may(pocket_sdk: openai.AsyncOpenAI) -> None:
    """In one batch: budgets, none, and one before a schema."""
    question: Any = asked("How many r's are in the word strawberry?")
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}
    wish = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    asked_for: list[dict[str, Any]] = [{"thinking_budget": budget} for budget in (0, 1, 7, 1000)]
    asked_for += [{"thinking_budget": 7, "response_format": wish}, {}]
    create = pocket_sdk.chat.completions.create
    answers: list[Any] = await asyncio.gather(
        *(create(model="pocket", messages=question, temperature=0, max_tokens=200, extra_body=body)
          for body in asked_for)
    )  # fmt: skip
    thoughts = [getattr(answer.choices[0].message, "reasoning_content", "") for answer in answers]
    contents = [answer.choices[0].message.content for answer in answers]
    counted = [answer.usage.completion_tokens_details.reasoning_tokens for answer in answers]
    whole = thoughts[-1]
    assert thoughts[3:4] == [whole]
    assert contents[3] == contents[-1]
    assert thoughts[0] == ""
    assert all(whole.startswith(reasoning) for reasoning in thoughts)
    around = 5  # what opens it; a line's end, what closes it, two more
    assert counted[:3] == [around, 1 + around, 7 + around]
    assert all(content and "think>" not in content for content in contents)
    assert list(json.loads(contents[4])) in (["n"], [])
    assert thoughts[4] == thoughts[2]
