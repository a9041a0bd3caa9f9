"""Chunks of a chat completion, and that the JSON answer is their fold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from server.dialects.openai_chat.encode import AnswerForm, build_encoder, build_fold, encode_logprobs
from server.text.events import (
    Finished,
    OutputEvent,
    ReasoningDelta,
    TextDelta,
    TokenText,
    ToolCallDelta,
    Usage,
)
from tests.server.dialects.streams import HEAD, encode_all, folded, jobs, token


def test_chunks() -> None:
    batches: list[list[OutputEvent]] = [
        [TextDelta(0, 'a"\n')],
        [TextDelta(0, "é"), Finished(0, "length", 2), Usage(5, 2, 2)],
    ]
    chunks = encode_all(build_encoder(HEAD, True), batches)
    head = {"id": "id-1", "object": "chat.completion.chunk", "created": 1700000000, "model": "mock"}
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {"content": 'a"\n'}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "é"}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}],
        [],
    ]
    assert all(head.items() <= chunk.items() for chunk in chunks)
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 4
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)


def test_no_usage_unless_asked() -> None:
    chunks = encode_all(build_encoder(HEAD, False), [[Finished(0, "stop", 1), Usage(1, 0, 1)]])
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [{"role": "assistant", "content": ""}, {}]
    assert all("usage" not in chunk for chunk in chunks)


def test_reasoning_and_calls() -> None:
    call = ToolCallDelta(0, 0, "call_1", "f", '{"a": "é"}')
    other = ToolCallDelta(0, 1, "call_2", "g", "{}")
    end = Finished(0, "tool_calls", 9, 3)
    batches: list[list[OutputEvent]] = [
        [ReasoningDelta(0, 'h"', (token("h"),))],
        [call, other, end, Usage(5, 0, 9, 0, 3)],
    ]
    chunks = encode_all(build_encoder(HEAD, True), batches)
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:-1]] == [
        {"role": "assistant", "content": None},
        {"reasoning_content": 'h"'},
        {"tool_calls": [{"index": 0, **written(call)}]},
        {"tool_calls": [{"index": 1, **written(other)}]},
        {},
    ]
    assert [chunk["choices"][0]["logprobs"] for chunk in chunks[:-1]] == [None] * 5
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert chunks[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    (choice,) = folded(build_fold(HEAD), batches)["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "reasoning_content": 'h"',
        "tool_calls": [written(call), written(other)],
        "refusal": None,
    }
    assert choice["logprobs"] is None


def written(call: ToolCallDelta) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def concatenate(chunks: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The choices as the SDK adds them up: strings grow, null gives way, calls are told apart by their index."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
        for piece in chunk["choices"]:
            index, delta = piece["index"], piece["delta"]
            assert ("role" in delta) == (index not in choices)
            choice = choices.setdefault(index, {"message": {"refusal": None}, "logprobs": [], "reason": None})
            message = choice["message"]
            for name, value in delta.items():
                if name == "tool_calls":
                    calls = message.setdefault("tool_calls", [])
                    assert value[0].pop("index") == len(calls)
                    calls += value
                else:
                    message[name] = value if message.get(name) is None else message[name] + value
            choice["reason"] = piece["finish_reason"] or choice["reason"]
            choice["logprobs"] += (piece["logprobs"] or {"content": []})["content"]
    return choices


_indices = st.integers(0, 1)
_tokens = st.lists(st.builds(token, st.text(min_size=1, max_size=2)), max_size=2).map(tuple)
_deltas = st.one_of(
    st.builds(TextDelta, _indices, st.text(min_size=1), _tokens),
    st.builds(TextDelta, _indices, st.just(""), st.just((token("a"),))),
    st.builds(ReasoningDelta, _indices, st.text(min_size=1), _tokens),
    st.builds(ToolCallDelta, _indices, st.just(0), st.text(), st.text(), st.just("{}")),
)


@st.composite
def parsed_jobs(draw: st.DrawFn) -> list[list[OutputEvent]]:
    """The batches of a chat with two choices, their deltas in any order."""
    events: list[OutputEvent] = []
    num_calls = [0, 0]
    for delta in draw(st.lists(_deltas, max_size=12)):
        if isinstance(delta, ToolCallDelta):
            delta = replace(delta, call_index=num_calls[delta.index])
            num_calls[delta.index] += 1
        events.append(delta)
    events += [Finished(index, draw(st.sampled_from(["stop", "length", "tool_calls"])), 3, 1) for index in (1, 0)]
    size = draw(st.integers(1, 4))
    return [*(events[start : start + size] for start in range(0, len(events), size)), [Usage(5, 1, 6, 0, 2)]]


@given(st.one_of(jobs(), parsed_jobs()))
def test_the_answer_is_the_fold_of_the_stream(batches: list[list[OutputEvent]]) -> None:
    chunks = encode_all(build_encoder(HEAD, True), batches)
    answer = folded(build_fold(HEAD), batches)
    ChatCompletion.model_validate(answer)
    choices = {
        choice["index"]: {
            "message": choice["message"],
            "logprobs": (choice["logprobs"] or {"content": []})["content"],
            "reason": choice["finish_reason"],
        }
        for choice in answer["choices"]
    }
    assert choices == concatenate(chunks)
    assert list(choices) == sorted(choices)
    assert answer["usage"] == chunks[-1]["usage"]


def test_logprobs() -> None:
    part = TokenText(9, "\ufffd", b"\xc3", float("-inf"))
    assert encode_logprobs([token("a", -0.5, token("b", -0.25), part)]) == {
        "content": [
            {
                "token": "a",
                "logprob": -0.5,
                "bytes": [97],
                "top_logprobs": [
                    {"token": "b", "logprob": -0.25, "bytes": [98]},
                    {"token": "\ufffd", "logprob": -9999.0, "bytes": [0xC3]},
                ],
            }
        ],
        "refusal": None,
    }


@pytest.mark.parametrize("names", [("reasoning",), ("reasoning_content", "reasoning"), ()])
def test_the_names_of_a_reasoning(names: tuple[str, ...]) -> None:
    form = AnswerForm(names)
    batches: list[list[OutputEvent]] = [
        [ReasoningDelta(0, 'h"', (token("h"),)), TextDelta(0, "x")],
        [Finished(0, "stop", 2, 1), Usage(5, 0, 2, 0, 1)],
    ]
    chunks = encode_all(build_encoder(HEAD, False, form), batches)
    reasoning = dict.fromkeys(names, 'h"')
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [
        {"role": "assistant", "content": None},
        *([reasoning] if names else []),
        {"content": "x"},
        {},
    ]
    (choice,) = folded(build_fold(HEAD, form), batches)["choices"]
    assert choice["message"] == {"role": "assistant", "content": "x", **reasoning, "refusal": None}


def test_a_call_in_its_older_form() -> None:
    form = AnswerForm(is_old=True)
    batches: list[list[OutputEvent]] = [
        [ToolCallDelta(0, 0, "call_1", "f", '{"a": 1}'), Finished(0, "tool_calls", 2), Usage(5, 0, 2)]
    ]
    chunks = encode_all(build_encoder(HEAD, False, form), batches)
    call = {"name": "f", "arguments": '{"a": 1}'}
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": None},
        {"function_call": call},
        {},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    (choice,) = folded(build_fold(HEAD, form), batches)["choices"]
    assert choice["message"] == {"role": "assistant", "content": None, "function_call": call, "refusal": None}
    assert choice["finish_reason"] == "function_call"
