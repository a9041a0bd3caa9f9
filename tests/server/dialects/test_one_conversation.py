"""One conversation with a tool through every API: the same prompts, thoughts, calls and answers, one warm prefix."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from server import pocket
from tests.server_process import serving

pytestmark = [
    pytest.mark.mlx,
    pytest.mark.skipif(not pocket.is_here(), reason="the weights are not there; `make pocket` makes them"),
]

QUESTIONS = ["What is the weather in Paris?", "How many r's are in the word strawberry?"]
RESULT = '{"weather": "sunny", "degrees": 21}'
DESCRIPTION = "Weather in a city"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": DESCRIPTION, "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": FUNCTION}]


@dataclass
class Turn:
    """What an answer holds. `given`: itself, as its API takes it back in the next request."""

    text: str
    thought: str
    calls: list[tuple[str, dict[str, Any]]]
    num_prompt_tokens: int
    given: Any = field(compare=False)
    num_cached_tokens: int | None = field(default=None, compare=False)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving() as (_, client):
        yield client


def post(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    answer = client.post(path, json={"model": "pocket", **body})
    assert answer.status_code == 200, answer.text
    read: dict[str, Any] = answer.json()
    return read


def chat(client: httpx.Client, messages: list[Any]) -> Turn:
    read = post(client, "/v1/chat/completions", messages=messages, tools=TOOLS, temperature=0, max_tokens=300)
    message, usage = read["choices"][0]["message"], read["usage"]
    called = [call["function"] for call in message.get("tool_calls") or ()]
    return Turn(
        message["content"] or "",
        message.get("reasoning_content") or "",
        [(call["name"], json.loads(call["arguments"])) for call in called],
        usage["prompt_tokens"],
        [message],
        usage["prompt_tokens_details"]["cached_tokens"],
    )


def anthropic(client: httpx.Client, messages: list[Any]) -> Turn:
    tools = [{"name": "get_weather", "description": DESCRIPTION, "input_schema": PARAMETERS}]
    read = post(client, "/v1/messages", messages=messages, tools=tools, temperature=0, max_tokens=300)
    blocks, usage = read["content"], read["usage"]
    return Turn(
        "".join(block["text"] for block in blocks if block["type"] == "text"),
        "".join(block["thinking"] for block in blocks if block["type"] == "thinking"),
        [(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"],
        usage["input_tokens"] + usage["cache_read_input_tokens"],
        [{"role": "assistant", "content": blocks}],
        usage["cache_read_input_tokens"],
    )


def responses(client: httpx.Client, messages: list[Any]) -> Turn:
    tools = [{"type": "function", **FUNCTION}]
    asked = {"input": messages, "tools": tools, "temperature": 0, "max_output_tokens": 300, "store": False}
    read = post(client, "/v1/responses", **asked)
    items, usage = read["output"], read["usage"]
    parts = {
        kind: "".join(part["text"] for item in items if item["type"] == kind for part in item["content"])
        for kind in ("message", "reasoning")
    }
    return Turn(
        parts["message"],
        parts["reasoning"],
        [(item["name"], json.loads(item["arguments"])) for item in items if item["type"] == "function_call"],
        usage["input_tokens"],
        items,
        usage["input_tokens_details"]["cached_tokens"],
    )


def ollama(client: httpx.Client, messages: list[Any]) -> Turn:
    options = {"temperature": 0, "num_predict": 300}
    read = post(client, "/api/chat", messages=messages, tools=TOOLS, options=options, stream=False)
    message = read["message"]
    called = [call["function"] for call in message.get("tool_calls") or ()]
    return Turn(
        message["content"],
        message.get("thinking") or "",
        [(call["name"], call["arguments"]) for call in called],
        read["prompt_eval_count"],
        [message],
    )


def chat_result(turn: Turn) -> Any:
    return {"role": "tool", "tool_call_id": turn.given[0]["tool_calls"][0]["id"], "content": RESULT}


def anthropic_result(turn: Turn) -> Any:
    (call,) = (block for block in turn.given[0]["content"] if block["type"] == "tool_use")
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call["id"], "content": RESULT}]}


def responses_result(turn: Turn) -> Any:
    (call,) = (item for item in turn.given if item["type"] == "function_call")
    return {"type": "function_call_output", "call_id": call["call_id"], "output": RESULT}


def ollama_result(turn: Turn) -> Any:
    return {"role": "tool", "tool_name": "get_weather", "content": RESULT}


Ask = Callable[[httpx.Client, list[Any]], Turn]


def converse(client: httpx.Client, ask: Ask, result: Callable[[Turn], Any]) -> list[Turn]:
    """Ask both questions; the first one's call gets its result."""
    messages: list[Any] = [{"role": "user", "content": QUESTIONS[0]}]
    called = ask(client, messages)
    messages += [*called.given, result(called)]
    answered = ask(client, messages)
    messages += [*answered.given, {"role": "user", "content": QUESTIONS[1]}]
    return [called, answered, ask(client, messages)]


def test_every_api_gives_the_same_conversation(client: httpx.Client) -> None:
    expected = converse(client, chat, chat_result)
    assert [len(turn.calls) for turn in expected] == [1, 0, 0]
    assert "21 degrees" in expected[1].text
    for ask, result in ((anthropic, anthropic_result), (responses, responses_result), (ollama, ollama_result)):
        turns = converse(client, ask, result)
        assert turns == expected, ask.__name__
        for turn in turns:
            assert turn.num_cached_tokens in (None, turn.num_prompt_tokens - 1)


def test_a_rendered_prompt_is_completed_as_the_chat_is(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": "How many r's are in the word strawberry?"}]
    asked = post(client, "/v1/chat/completions", messages=messages, temperature=0, max_tokens=300)
    message = asked["choices"][0]["message"]
    ids = client.post("/tokenize", json={"model": "pocket", "messages": messages}).json()["tokens"]
    completed = post(client, "/v1/completions", prompt=ids, temperature=0, max_tokens=300)
    text = completed["choices"][0]["text"]
    assert message["content"] and message["content"] in text
    assert completed["usage"]["prompt_tokens"] == asked["usage"]["prompt_tokens"]
    assert completed["usage"]["completion_tokens"] == asked["usage"]["completion_tokens"]
