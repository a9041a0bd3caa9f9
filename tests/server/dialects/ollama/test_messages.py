"""Conversations of Ollama's as chat templates read them: thoughts, calls and their results."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.dialects.ollama.messages import decode_ending, decode_messages
from server.dialects.ollama.schema import ChatRequest, validate
from server.errors import InvalidRequest

CITY = {"name": "get_weather", "arguments": {"city": "Köln"}}


def decoded(*messages: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    body = validate(ChatRequest, {"messages": list(messages)})
    found, ignored = decode_messages(body.messages or [])
    return [dict(message) for message in found], ignored


def called(*calls: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": list(calls), **fields}


def test_thoughts_and_roles() -> None:
    found, ignored = decoded(
        {"role": "developer", "content": "a", "thinking": "no"},
        {"role": "user", "content": "b", "odd": 1},
        {"role": "assistant", "content": "c", "thinking": "so"},
    )
    assert found == [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c", "reasoning_content": "so"},
    ]
    assert ignored == ["messages.odd"]


def test_calls_get_ids_and_objects() -> None:
    ((message,), _) = decoded(
        called(
            {"function": CITY},
            {"id": "mine", "function": {"name": "f", "arguments": '{"x": 1}'}},
            {"function": {"name": "g"}},
        )
    )
    assert message["content"] == ""
    assert message["tool_calls"] == [
        {"id": "call_0_0", "type": "function", "function": CITY},
        {"id": "mine", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
        {"id": "call_0_2", "type": "function", "function": {"name": "g", "arguments": {}}},
    ]


def test_results_find_their_calls_by_id_by_name_or_in_turn() -> None:
    calls = called({"function": CITY}, {"id": "mine", "function": CITY}, {"function": {"name": "other"}})
    results = [{"tool_name": "other"}, {"tool_call_id": "mine"}, {}, {}, {"tool_name": "never"}]
    found, _ = decoded(calls, *({"role": "tool", "content": "x", **result} for result in results))
    assert [(message.get("tool_call_id"), message.get("name")) for message in found[1:]] == [
        ("call_0_2", "other"),
        ("mine", "get_weather"),
        ("call_0_0", "get_weather"),
        (None, None),
        (None, "never"),
    ]


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=6), st.randoms())
def test_results_by_name_get_the_ids_of_their_calls(names: list[str], source: Any) -> None:
    """Each call is answered once, whatever the order, by a result of its own tool."""
    shuffled = source.sample(names, len(names))
    calls = called(*({"function": {"name": name}} for name in names))
    results = [{"role": "tool", "content": "x", "tool_name": name} for name in shuffled]
    (first, *found), _ = decoded(calls, *results)
    by_id = {call["id"]: call["function"]["name"] for call in first.get("tool_calls", ())}
    assert [by_id[result["tool_call_id"]] for result in found] == shuffled
    assert sorted(result["tool_call_id"] for result in found) == sorted(by_id)


def test_images_are_refused_with_their_place() -> None:
    with pytest.raises(InvalidRequest) as raised:
        decoded({"role": "user", "content": "x", "images": []}, {"role": "user", "content": "x", "images": ["aGk="]})
    assert raised.value.param == "messages.1.images"


@pytest.mark.parametrize(
    ("last", "ending"),
    [
        ({"role": "user", "content": "x"}, "answer"),
        ({"role": "assistant", "content": "x"}, "continued"),
        (called({"function": CITY}), "answer"),
        ({"role": "tool", "content": "x"}, "answer"),
    ],
)
def test_where_the_answer_begins(last: dict[str, Any], ending: str) -> None:
    assert decode_ending(validate(ChatRequest, {"messages": [last]}).messages or []) == ending
