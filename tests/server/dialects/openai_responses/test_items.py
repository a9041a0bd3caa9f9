"""Items to the messages that templates read: what an assistant said in one go is one; errors name their place."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.dialects.openai_responses.items import decode_items, publish
from server.dialects.openai_responses.sealed import seal
from server.dialects.openai_responses.tools import Toolbox, decode_tools
from server.errors import APIError, InvalidRequest

CALL = {"type": "function_call", "call_id": "c1", "name": "find", "arguments": '{"a": 1}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "found"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}


def said(text: Any, role: str = "assistant") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": text}


def messages_of(*items: dict[str, Any], box: Toolbox | None = None) -> list[dict[str, Any]]:
    messages, _ = decode_items(items, 0, box or Toolbox())
    return [dict(message) for message in messages]


def test_what_an_assistant_says_in_one_go_is_one_message() -> None:
    second = {**CALL, "call_id": "c2", "arguments": "not JSON"}
    answered = (THOUGHT, said("I ask."), CALL, second)
    user, answer, result, last = messages_of(said("hi", "user"), *answered, RESULT, said("so"))
    assert user == {"role": "user", "content": "hi"}
    assert (answer["reasoning_content"], answer["content"]) == ("hm", "I ask.")
    assert [(call["id"], call["function"]["arguments"]) for call in answer["tool_calls"]] == [
        ("c1", {"a": 1}),
        ("c2", "not JSON"),
    ]
    assert result == {"role": "tool", "content": "found", "tool_call_id": "c1"}
    assert last == {"role": "assistant", "content": "so"}


def test_an_answer_after_a_call_belongs_to_the_same_message_and_a_second_answer_does_not() -> None:
    assert [message["content"] for message in messages_of(said("a"), CALL, said("b"), said("c"))] == ["ab", "c"]


def test_texts_have_many_forms() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}]
    answer = [{"type": "output_text", "text": "c", "annotations": []}, {"type": "refusal", "refusal": "d"}]
    developer = {"role": "developer", "content": parts}  # without a type, as the SDK has it
    outputs = {**RESULT, "output": parts}
    assert [message["content"] for message in messages_of(developer, said(answer), CALL, outputs)] == ["ab", "cd", "ab"]
    assert messages_of(developer)[0]["role"] == "system"


def test_a_custom_call_and_a_namespace_are_what_the_model_knows() -> None:
    tool = {"type": "custom", "name": "shell"}
    box = decode_tools([{"type": "namespace", "name": "os", "description": "", "tools": [tool]}])
    call = {"type": "custom_tool_call", "call_id": "c1", "name": "shell", "namespace": "os", "input": "ls"}
    answer, result = messages_of(call, {**RESULT, "type": "custom_tool_call_output"}, box=box)
    assert answer["tool_calls"][0]["function"] == {"name": "os__shell", "arguments": {"input": "ls"}}
    assert result["content"] == "found"


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (THOUGHT, "hm"),
        ({"type": "reasoning", "summary": [], "encrypted_content": seal("sealed")}, "sealed"),
        ({"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": "gAAA"}, "s"),
        ({"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "content": None}, "s"),
    ],
)
def test_a_thought_is_read_from_what_there_is(item: dict[str, Any], text: str) -> None:
    assert messages_of(item, said("so")) == [{"role": "assistant", "content": "so", "reasoning_content": text}]


def test_a_thought_without_words_is_no_message() -> None:
    assert messages_of({"type": "reasoning", "summary": []}) == []


def test_items_without_words_and_fields_that_nobody_knows_are_named() -> None:
    items = [{"type": "web_search_call", "id": "ws_1"}, {**said("a"), "phase": "commentary", "mood": 1}]
    assert decode_items(items, 0, Toolbox())[1] == ["input.web_search_call", "input.mood"]


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([{}], "input.0.type"),
        ([{"type": "computer_call_output"}], "input.0.type"),
        ([said("a"), said(None)], "input.1.content"),
        ([said("a", "tool")], "input.0.role"),
        ([{"role": 1, "content": "a"}], "input.0.role"),
        ([said([{"type": "input_image", "image_url": "x"}], "user")], "input.0.content.0.type"),
        ([said([{"type": "input_text", "text": 5}], "user")], "input.0.content.0.text"),
        ([said(["a"], "user")], "input.0.content.0"),
        ([said("\ud800", "user")], "input.0.content"),
        ([{**CALL, "arguments": {}}], "input.0.arguments"),
        ([{**CALL, "name": None}], "input.0.name"),
        ([CALL, {**RESULT, "call_id": "c2"}], "input.1.call_id"),
        ([RESULT, CALL], "input.0.call_id"),
        ([CALL, {**RESULT, "output": [{"type": "input_file"}]}], "input.1.output.0.type"),
        ([{"type": "reasoning", "summary": "s"}], "input.0.summary"),
        ([{"type": "reasoning", "content": [{"type": "input_text", "text": "a"}]}], "input.0.content.0.type"),
        ([{"type": "reasoning", "encrypted_content": 1}], "input.0.encrypted_content"),
    ],
)
def test_an_item_that_is_wrong_is_refused_with_its_place(items: list[dict[str, Any]], param: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        decode_items(items, 0, Toolbox())
    assert error.value.param == param


def test_the_place_is_that_within_the_request() -> None:
    with pytest.raises(InvalidRequest) as error:
        decode_items([said("stored"), CALL, said(3)], 2, Toolbox())
    assert error.value.param == "input.0.content"


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "a", "\ud800", "message", "c1"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "text"]), inner, max_size=2),
    max_leaves=4,
)
KINDS = st.sampled_from(["message", "function_call", "function_call_output", "custom_tool_call", "reasoning", "mcp", 3])
FIELDS = st.sampled_from(
    ["role", "content", "call_id", "name", "namespace", "arguments", "input", "output", "summary", "encrypted_content"]
)
ITEMS = st.builds(
    lambda kind, fields: {"type": kind, "role": "user", **fields}, KINDS, st.dictionaries(FIELDS, ODD, max_size=4)
)


@settings(max_examples=50, deadline=None)
@given(st.lists(ITEMS | st.dictionaries(st.sampled_from(["type", "id", "role"]), ODD), max_size=3))
def test_odd_items_are_read_or_refused(items: list[dict[str, Any]]) -> None:
    try:
        messages, _ = decode_items(items, 0, Toolbox())
    except APIError as error:
        assert error.status == 400 and (error.param or "").startswith("input.")
        return
    assert all(isinstance(message["content"], str) for message in messages)


TOOLS = st.fixed_dictionaries(
    {"type": st.sampled_from(["function", "custom", "namespace", "mcp", 1])},
    optional={name: ODD for name in ("name", "parameters", "format", "tools", "strict", "description")},
)


@settings(max_examples=50, deadline=None)
@given(st.lists(TOOLS, max_size=2))
def test_odd_tools_are_read_or_refused(tools: list[dict[str, Any]]) -> None:
    try:
        decode_tools(tools)
    except APIError as error:
        assert error.status == 400 and (error.param or "").startswith("tools.")


def test_what_is_given_back_has_ids_and_types() -> None:
    items = publish(
        [{"role": "user", "content": "hi", "x": "x" * 99}, said("so"), {**CALL, "id": "fc_9"}, THOUGHT], "k"
    )
    assert [(item["type"], item["id"]) for item in items] == [
        ("message", "msg_k_i0"),
        ("message", "msg_k_i1"),
        ("function_call", "fc_9"),
        ("reasoning", "rs_1"),
    ]
    assert items[0].keys() == {"role", "content", "id", "type", "status"}
    assert items[0]["content"] == [{"type": "input_text", "text": "hi"}]
    assert items[1]["content"] == [{"type": "output_text", "text": "so", "annotations": []}]
