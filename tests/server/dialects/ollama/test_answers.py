"""Answers end to end: what the official client makes of what a scripted engine writes, and what the engine is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from mlx_backend.api.errors import OutOfMemory, QueueFull, SequenceFailed
from mlx_backend.api.interface import SamplingParams
from tests.fake_engine import spell
from tests.server.dialects.ollama.served import Served, said, serving
from tests.server.dialects.openai_chat.test_answers import CALL, WEATHER

REASONING = "<think>\nhm\n</think>\n\n"
HI: Any = [{"role": "user", "content": "hi"}]
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as served:
        yield served


async def test_a_chat(served: Served) -> None:
    served.write(said("né."))
    answer = await served.sdk().chat("mock", HI, options={"temperature": 0, "num_predict": 9})
    assert (answer.message.role, answer.message.content, answer.done_reason) == ("assistant", "né.", "stop")
    assert (answer.model, answer.done) == ("mock", True)
    assert served.prompt == "user: hi\nassistant:"
    assert (answer.prompt_eval_count, answer.eval_count) == (len(served.prompt), 5)
    assert all(answer[name] >= 1 for name in DURATIONS)
    assert answer.total_duration >= answer.prompt_eval_duration  # type: ignore[operator]
    assert served.engine.requests[-1].max_tokens == 9
    assert served.engine.requests[-1].sampling.temperature == 0


async def test_a_stream_adds_up_to_the_whole(served: Served) -> None:
    served.write(said(f"{REASONING}I ask. {CALL}\n{CALL}"))
    parts = [part async for part in await served.sdk().chat("mock", HI, stream=True, tools=[WEATHER])]
    served.write(said(f"{REASONING}I ask. {CALL}\n{CALL}"))
    whole = await served.sdk().chat("mock", HI, tools=[WEATHER])
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert "".join(part.message.thinking or "" for part in parts) == whole.message.thinking == "hm"
    assert "".join(part.message.content or "" for part in parts) == whole.message.content == "I ask."
    calls = [call for part in parts for call in part.message.tool_calls or ()]
    assert calls == list(whole.message.tool_calls or ())
    assert [(call.function.name, call.function.arguments) for call in calls] == [("get_weather", {"city": "Köln"})] * 2
    assert (parts[-1].done_reason, whole.done_reason) == ("stop", "stop")
    assert parts[-1].eval_count == whole.eval_count


async def test_it_is_streamed_unless_it_is_not_to_be(served: Served) -> None:
    served.write(said("ab"))
    async with served.http() as client:
        streamed = await client.post("/api/chat", json={"messages": HI})
        whole = await client.post("/api/chat", json={"messages": HI, "stream": False})
    assert streamed.headers["content-type"] == "application/x-ndjson"
    assert len(streamed.text.splitlines()) == 3
    assert whole.headers["content-type"] == "application/json"
    assert whole.json()["message"]["content"] == "ab"


async def test_an_answer_goes_on_where_the_last_message_stops(served: Served) -> None:
    served.write(said(" is 4."))
    answer = await served.sdk().chat("mock", [*HI, {"role": "assistant", "content": "It "}])
    assert served.prompt == "user: hi\nassistant: It "
    assert answer.message.content == " is 4."


async def test_log_probabilities(served: Served) -> None:
    served.write(said("né", logprob=-0.5))
    sdk = served.sdk()
    parts = [part async for part in await sdk.chat("mock", HI, stream=True, logprobs=True, top_logprobs=1)]
    whole = await sdk.chat("mock", HI, logprobs=True, top_logprobs=1)
    assert [token for part in parts for token in part.logprobs or ()] == list(whole.logprobs or ())
    assert ((whole.logprobs or ())[0].token, (whole.logprobs or ())[0].logprob) == ("n", -0.5)
    assert [len(token.top_logprobs or ()) for token in whole.logprobs or ()] == [1, 1, 1]
    assert served.engine.requests[-1].sampling.num_logprobs == 1


async def test_a_prompt_is_a_question(served: Served) -> None:
    served.write(said(f"{REASONING}4"))
    sdk = served.sdk()
    answer = await sdk.generate("mock", "2 + 2?", system="Be brief.")
    assert served.prompt == "system: Be brief.\nuser: 2 + 2?\nassistant:"
    assert (answer.response, answer.thinking, answer.done_reason) == ("4", "hm", "stop")
    parts = [part async for part in await sdk.generate("mock", "2 + 2?", stream=True)]
    assert "".join(part.response or "" for part in parts) == "4"
    assert "".join(part.thinking or "" for part in parts) == "hm"


async def test_a_raw_prompt_is_continued(served: Served) -> None:
    served.write(said(f"{REASONING}4"))
    answer = await served.sdk().generate("mock", "2 + 2 =", raw=True)
    assert served.prompt == "2 + 2 ="
    assert answer.response == f"{REASONING}4"


async def test_a_gap_needs_a_model_with_tokens_for_it(served: Served) -> None:
    with pytest.raises(ollama.ResponseError, match=r"'suffix' is not supported: .* no tokens for filling"):
        await served.sdk().generate("mock", "def f(", suffix="return 1")


@pytest.mark.parametrize("format", ["json", {"type": "object", "properties": {"n": {"type": "integer"}}}])
async def test_an_answer_in_a_form(served: Served, format: Any) -> None:
    served.write(said('{"n":4}'))
    answer = await served.sdk().chat("mock", HI, format=format)
    assert json.loads(answer.message.content or "") == {"n": 4}
    assert served.engine.requests[-1].grammar is not None


@pytest.mark.parametrize("think", [False, "none"])
async def test_no_thought_is_wanted(served: Served, think: Any) -> None:
    served.write(said("4"))
    await served.sdk().chat("mock", HI, think=think)
    grammar = served.engine.requests[-1].grammar
    assert grammar is not None and grammar.start().num_free_tokens is not None


@pytest.mark.parametrize("think", [True, "low", "high", None])
async def test_a_thought_is_as_long_as_it_is(served: Served, think: Any) -> None:
    served.write(said("4"))
    await served.sdk().chat("mock", HI, think=think)
    assert served.engine.requests[-1].grammar is None


async def test_options(served: Served) -> None:
    served.write(said("one, two"))
    options = {
        **{"temperature": 0.5, "top_k": 4, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.8, "repeat_penalty": 1.5},
        **{"presence_penalty": 1.0, "frequency_penalty": 0.5, "seed": 7, "stop": [", "], "num_ctx": 2048.0},
        **{"num_gpu": 99, "mirostat": 0, "tfs_z": 1.0, "repeat_last_n": -1},
    }
    async with served.http() as client:
        answer = await client.post("/api/chat", json={"messages": HI, "stream": False, "options": options})
    assert answer.json()["message"]["content"] == "one"
    assert "x-pippin-ignored-fields" not in answer.headers
    assert "x-pippin-context-limit" not in answer.headers
    sampling = served.engine.requests[-1].sampling
    expected: dict[str, Any] = {"temperature": 0.5, "top_k": 4, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.8}
    expected |= {"repetition_penalty": 1.5, "presence_penalty": 1.0, "frequency_penalty": 0.5, "seed": 7}
    assert sampling == SamplingParams(**expected)


async def test_what_is_not_taken_is_said(served: Served) -> None:
    served.write(said("ok"))
    body = {"messages": HI, "foo": 1, "keep_alive": "5m", "options": {"num_ctx": 100_000, "bar": 2, "num_keep": 4}}
    async with served.http() as client:
        answer = await client.post("/api/chat", json=body)
    assert answer.headers["x-pippin-ignored-fields"] == "foo, keep_alive, options.bar, options.num_keep"
    assert answer.headers["x-pippin-context-limit"] == "4096"


@pytest.mark.parametrize(
    ("num_predict", "most"), [(None, 4096), (-1, 4096), (-2, 4096), (0, 4096), (5, 5), (100_000, 4096)]
)
async def test_how_long_an_answer_may_be(served: Served, num_predict: int | None, most: int) -> None:
    served.write([spell("ok")])
    options = {} if num_predict is None else {"num_predict": num_predict}
    answer = await served.sdk().chat("mock", HI, options=options)
    assert served.engine.requests[-1].max_tokens == min(most, 4096 - len(served.prompt))
    assert answer.done_reason == "length"


@pytest.mark.parametrize("name", ["mock", "mock:latest"])
async def test_a_tag_that_means_none(served: Served, name: str) -> None:
    served.write(said("ok"))
    assert (await served.sdk().chat(name, HI)).message.content == "ok"


@pytest.mark.parametrize(
    ("path", "fields", "said_of"),
    [
        ("chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages.0.images"),
        ("chat", {"messages": [*HI, {"role": "user", "content": 5}]}, "messages.1.content"),
        ("chat", {"messages": [{"role": "chef", "content": "x"}]}, "messages.0.role"),
        ("chat", {"messages": [{**HI[0], "tool_calls": [{"function": {"name": "f"}}]}]}, "assistant"),
        ("chat", {"messages": HI, "tools": [{"function": {"name": "a b"}}]}, "tools.0.function.name"),
        ("chat", {"messages": HI, "options": {"mirostat": 2}}, "options.mirostat"),
        ("chat", {"messages": HI, "options": {"temperature": "hot"}}, "options.temperature"),
        ("chat", {"messages": HI, "options": {"num_ctx": 1.5}}, "options.num_ctx"),
        ("chat", {"messages": HI, "format": "xml"}, "format"),
        ("chat", {"messages": HI, "format": {"type": "objekt"}}, "format"),
        ("chat", {"messages": HI, "format": {"multipleOf": 0.12345678901234567890123}}, "format"),
        ("chat", {"messages": HI, "think": "a bit"}, "think"),
        ("chat", {"messages": HI, "keep_alive": "5 minutes"}, "keep_alive"),
        ("chat", {"messages": HI, "top_logprobs": 1}, "top_logprobs"),
        ("generate", {"prompt": "x", "images": ["aGk="]}, "images"),
        ("generate", {"prompt": "x", "template": "{{ .Prompt }}"}, "raw"),
        ("generate", {"prompt": "x", "context": [1, 2]}, "/api/chat"),
        ("generate", {"prompt": "x", "raw": True, "system": "y"}, "'raw' and 'system'"),
        ("generate", {"prompt": "x" * 5000}, "4096"),
    ],
)
async def test_refusals_name_what_they_are_about(
    served: Served, path: str, fields: dict[str, Any], said_of: str
) -> None:
    served.write(said("ok"))
    async with served.http() as client:
        content = json.dumps(fields).replace("0.12345678901234568", "0.12345678901234567890123")
        answer = await client.post(f"/api/{path}", content=content)
    assert answer.status_code == 400
    assert answer.json().keys() == {"error"}
    assert said_of in answer.json()["error"]


async def test_errors_are_one_text_with_their_status(served: Served) -> None:
    async with served.http() as client:
        missing = await client.post("/api/chat", json={"model": "llama3", "messages": HI})
        unknown, method = await client.get("/api/nothing"), await client.get("/api/chat")
        served.engine.refusal = QueueFull(9)
        full = await client.post("/api/chat", json={"messages": HI})
        served.engine.refusal = None
    assert (missing.status_code, missing.json()) == (404, {"error": "model 'llama3' not found. Served here: mock."})
    assert (unknown.status_code, method.status_code, full.status_code) == (404, 405, 503)
    assert all(isinstance(answer.json()["error"], str) for answer in (unknown, method, full))


@pytest.mark.parametrize("path", ["chat", "generate"])
async def test_a_failure_of_a_stream_is_its_last_line(served: Served, path: str) -> None:
    served.write([spell("a", reason=None), OutOfMemory("no memory for this")])
    async with served.http() as client:
        answer = await client.post(f"/api/{path}", json={"messages": HI, "prompt": "hi"})
    *_, last = answer.text.splitlines()
    assert (answer.status_code, json.loads(last)) == (200, {"error": "no memory for this"})
    assert served.engine.streams[-1].num_closed == 1


async def test_the_client_raises_what_breaks_a_stream(served: Served) -> None:
    served.write([spell("a", reason=None), SequenceFailed("the sequence cannot go on")])
    with pytest.raises(ollama.ResponseError, match="the sequence cannot go on"):
        async for _ in await served.sdk().chat("mock", HI, stream=True):
            pass
    with pytest.raises(ollama.ResponseError, match="the sequence cannot go on") as raised:
        served.write([spell("a", reason=None), SequenceFailed("the sequence cannot go on")])
        await served.sdk().chat("mock", HI)
    assert raised.value.status_code == 500
