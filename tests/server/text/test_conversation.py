"""Conversations as templates take them: what each trait changes, and that no word is lost by any of them."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text import conversation
from server.text.conversation import CallShape, Traits, prepare

CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": [1]}}}
SAID = {"role": "assistant", "content": "I ask.", "tool_calls": [CALL]}
HI = {"role": "user", "content": "hi"}
AS_TEXT = {**CALL, "function": {"name": "weather", "arguments": '{"city": "Köln", "days": [1]}'}}


def write(calls: Any) -> str:
    return "".join(f"<{name} {json.dumps(dict(arguments), ensure_ascii=False)}>" for name, arguments in calls)


def prepared(messages: list[dict[str, Any]], told: str | None = None, **traits: Any) -> list[dict[str, Any]]:
    return prepare(messages, Traits(**traits), write, told)[0]


def changes(messages: list[dict[str, Any]], **traits: Any) -> list[str]:
    return prepare(messages, Traits(**traits), write)[1]


def of(roles: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": f"{role} {place}"} for place, role in enumerate(roles.split())]


def said(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


def test_calls_apart_from_content() -> None:
    alone = CallShape("none", as_text=True)
    first, called = prepared([SAID], calls=alone)
    assert first == {"role": "assistant", "content": "I ask."}
    assert called == {"role": "assistant", "content": None, "tool_calls": [AS_TEXT]}
    assert prepared([{**SAID, "content": ""}], calls=alone) == [called]
    assert prepared([SAID], calls=CallShape("empty"))[1] == {**SAID, "content": ""}
    assert prepared([SAID]) == [SAID]
    assert prepared([HI], calls=alone) == [HI]


@pytest.mark.parametrize(("shape", "given"), [(CallShape(), {"arguments": "so"}), (CallShape(as_text=True), "so")])
def test_arguments_that_are_a_text_are_what_the_template_can_write(shape: CallShape, given: object) -> None:
    call = {**CALL, "function": {"name": "weather", "arguments": "so"}}
    (message,) = prepared([{**SAID, "tool_calls": [call]}], calls=shape)
    assert message["tool_calls"] == [{**call, "function": {"name": "weather", "arguments": given}}]


def test_what_the_system_says_as_well() -> None:
    assert prepared([HI], "Tools.") == [{"role": "system", "content": "Tools."}, HI]
    brief = {"role": "system", "content": "Be brief."}
    assert prepared([brief, HI], "Tools.") == [{"role": "system", "content": "Be brief.\n\nTools."}, HI]
    assert prepared([brief, HI], "") == [brief, HI]
    assert prepared([HI], "") == [{"role": "system", "content": ""}, HI]
    assert prepared([{**brief, "content": ""}], "Tools.") == [{"role": "system", "content": "Tools."}]
    assert prepared([HI], "Tools.", system="nowhere") == [{"role": "user", "content": "Tools.\n\nhi"}]


@pytest.mark.parametrize(
    ("roles", "first", "nowhere"),
    [
        ("user", "user:user 0", "user:user 0"),
        ("system user", "system:system 0|user:user 1", "user:system 0+user 1"),
        ("system system user", "system:system 0+system 1|user:user 2", "user:system 0+system 1+user 2"),
        (
            "system user assistant system user",
            "system:system 0+system 3|user:user 1|assistant:assistant 2|user:user 4",
            "user:system 0+system 3+user 1|assistant:assistant 2|user:user 4",
        ),
        ("user system", "system:system 1|user:user 0", "user:system 1+user 0"),
        ("system", "system:system 0", "user:system 0"),
        (
            "system assistant user",
            "system:system 0|assistant:assistant 1|user:user 2",
            "user:system 0|assistant:assistant 1|user:user 2",
        ),
    ],
)
def test_where_the_system_may_speak(roles: str, first: str, nowhere: str) -> None:
    assert prepared(of(roles)) == of(roles)
    for place, expected in (("first", first), ("nowhere", nowhere)):
        found = said(prepared(of(roles), system=place))
        assert "|".join(f"{role}:{content}" for role, content in found) == expected.replace("+", "\n\n")


@pytest.mark.parametrize(
    ("roles", "merged"),
    [
        ("user user", "user:user 0+user 1"),
        ("user assistant assistant user", "user:user 0|assistant:assistant 1+assistant 2|user:user 3"),
        ("system user user user", "system:system 0|user:user 1+user 2+user 3"),
        ("user assistant user", "user:user 0|assistant:assistant 1|user:user 2"),
    ],
)
def test_turns_that_alternate(roles: str, merged: str) -> None:
    found = said(prepared(of(roles), alternates=True))
    assert "|".join(f"{role}:{content}" for role, content in found) == merged.replace("+", "\n\n")


def test_merged_messages_keep_reasoning_and_calls() -> None:
    first = {"role": "assistant", "content": "a", "reasoning_content": "t"}
    merged = prepared([HI, first, {**SAID, "reasoning_content": "u"}], alternates=True)
    assert merged[1:] == [{**SAID, "content": "a\n\nI ask.", "reasoning_content": "t\n\nu"}]
    assert len(prepared([HI, SAID, SAID], alternates=True)) == 3  # whose results would stand behind both


def test_a_user_is_added_where_one_is_wanted() -> None:
    empty = {"role": "user", "content": ""}
    assert prepared(of("assistant user"), user_first=True) == [empty, *of("assistant user")]
    assert prepared(of("system assistant"), user_first=True)[1] == empty
    assert prepared(of("system user"), user_first=True) == of("system user")
    assert prepared(of("system"), needs_user=True) == [*of("system"), empty]
    assert prepared([], needs_user=True) == [empty]


def test_ids_of_nine_characters() -> None:
    result = {"role": "tool", "tool_call_id": "call_ef35b83bc73346f19ece9cb9", "content": "4"}
    called = {**SAID, "tool_calls": [{**CALL, "id": result["tool_call_id"]}]}
    first, second = prepared([called, result], nine_characters=True)
    assert first["tool_calls"][0]["id"] == second["tool_call_id"]
    assert len(second["tool_call_id"]) == 9 and second["tool_call_id"].isalnum()
    kept = {**SAID, "tool_calls": [{**CALL, "id": "abcdefghi"}]}
    assert prepared([kept], nine_characters=True) == [kept]
    assert changes([kept], nine_characters=True) == []
    without = {**SAID, "tool_calls": [{"type": "function", "function": CALL["function"]}]}
    assert len(prepared([without], nine_characters=True)[0]["tool_calls"][0]["id"]) == 9


def call(id: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": id, "arguments": {}}}


def test_several_calls_where_a_message_may_have_one() -> None:
    """Each is followed by its own result, wherever the results stood."""
    said_both = {"role": "assistant", "content": "x", "reasoning_content": "t", "tool_calls": [call("a"), call("b")]}
    results = [{"role": "tool", "tool_call_id": id, "content": f"of {id}"} for id in ("b", "a")]
    found = prepared([HI, said_both, *results, HI], one_call=True)
    assert [message["role"] for message in found] == ["user", "assistant", "tool", "assistant", "tool", "user"]
    assert found[1] == {**said_both, "tool_calls": [call("a")]}
    assert found[2]["content"] == "of a"
    assert found[3] == {"role": "assistant", "content": "", "tool_calls": [call("b")]}
    assert found[4]["content"] == "of b"
    nameless = [{"role": "tool", "content": str(place)} for place in range(3)]
    found = prepared([said_both, *nameless], one_call=True)
    assert [message["content"] for message in found] == ["x", "0", "", "1", "2"]


def test_calls_and_results_as_text() -> None:
    result = {"role": "tool", "tool_call_id": "c", "content": "rain"}
    found = prepared([HI, SAID, result], calls=None, results=False)
    assert found[1:] == [
        {"role": "assistant", "content": 'I ask.\n<weather {"city": "Köln", "days": [1]}>'},
        {"role": "user", "content": "<tool_response>\nrain\n</tool_response>"},
    ]
    broken = {**SAID, "tool_calls": [{**CALL, "function": {"name": "weather", "arguments": "so"}}]}
    assert "so" in prepared([broken], calls=None)[0]["content"]


def test_results_are_answered_before_the_user_goes_on() -> None:
    result: dict[str, Any] = {"role": "tool", "tool_call_id": "c", "content": "rain"}
    found = prepared([HI, SAID, result, HI], answers_results=True)
    assert found[3:] == [{"role": "assistant", "content": ""}, HI]
    answered: list[dict[str, Any]] = [HI, SAID, result, {"role": "assistant", "content": "It rains."}, HI]
    assert prepared(answered, answers_results=True) == answered


def test_calls_that_stand_alone_are_not_merged_with_what_was_said() -> None:
    messages: list[dict[str, Any]] = [HI, {"role": "assistant", "content": "a"}, SAID]
    found = prepared(messages, calls=CallShape("empty"), alternates=True)
    assert [message["content"] for message in found] == ["hi", "a\n\nI ask.", ""]
    assert found[2]["tool_calls"] == SAID["tool_calls"]


def test_the_key_of_a_reasoning() -> None:
    reasoning = {"role": "assistant", "content": "", "reasoning_content": "t"}
    assert prepared([reasoning], reasoning_key="thinking") == [{**reasoning, "thinking": "t"}]
    assert prepared([HI], reasoning_key="thinking") == [HI]


def test_what_was_changed_is_said() -> None:
    assert changes(of("system user assistant user")) == []
    assert changes(of("system user system"), system="first") == [conversation.SYSTEM_MOVED]
    assert changes(of("system user user"), system="nowhere", alternates=True) == [
        conversation.NO_SYSTEM,
        conversation.TURNS_MERGED,
    ]
    assert changes(of("user tool user"), answers_results=True) == [conversation.RESULTS_ANSWERED]
    assert changes([HI, SAID], calls=None) == [conversation.CALLS_AS_TEXT]
    assert changes([HI, {"role": "tool", "content": ""}], results=False) == [conversation.RESULTS_AS_TEXT]


TRAITS = st.builds(
    Traits,
    calls=st.sampled_from(
        [None, *(CallShape(beside, text) for beside in ("content", "empty", "none") for text in (False, True))]
    ),
    one_call=st.booleans(),
    nine_characters=st.booleans(),
    results=st.booleans(),
    system=st.sampled_from(["anywhere", "first", "nowhere"]),
    alternates=st.booleans(),
    user_first=st.booleans(),
    needs_user=st.booleans(),
    answers_results=st.booleans(),
    reasoning_key=st.sampled_from(["reasoning_content", "thinking"]),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    messages = of(" ".join(draw(st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), max_size=8))))
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            ids = draw(st.lists(st.sampled_from("abc"), max_size=2))
            message["tool_calls"] = [call(f"name{place}{id}") for id in ids]
            message["content"] = draw(st.sampled_from([message["content"], ""]))
        if message["role"] == "tool":
            message["tool_call_id"] = draw(st.sampled_from(["name1a", "name2b", "x"]))
    return messages


@given(conversations(), TRAITS)
def test_no_word_is_lost_and_the_template_gets_what_it_takes(messages: list[dict[str, Any]], traits: Traits) -> None:
    before = json.dumps(messages)
    found, _ = prepare(messages, traits, write)
    assert json.dumps(messages) == before
    text = json.dumps(found)
    for message in messages:
        assert not message["content"] or message["content"] in text
        for each in message.get("tool_calls") or ():
            assert each["function"]["name"] in text
    roles = [message["role"] for message in found]
    assert traits.system != "nowhere" or "system" not in roles
    assert traits.system != "first" or "system" not in roles[1:]
    assert traits.results or "tool" not in roles
    assert not traits.one_call or all(len(message.get("tool_calls") or ()) < 2 for message in found)
    if traits.alternates:
        for first, second in pairwise(found):
            is_same = first["role"] == second["role"] and first["role"] in ("user", "assistant")
            assert not is_same or first.get("tool_calls") or second.get("tool_calls")
    if traits.user_first and "assistant" in roles:
        assert roles.index("assistant") > 0 and (roles[0] != "system" or roles.index("assistant") > 1)
