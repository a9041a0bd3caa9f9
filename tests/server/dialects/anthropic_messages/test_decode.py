"""What a body becomes: the messages that a chat template reads, the tools, the wishes; and any JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.dialects.anthropic_messages.decode import NO_EFFECT, UNSUPPORTED, decode
from server.dialects.anthropic_messages.schema import MessagesRequest
from server.dialects.anthropic_messages.signatures import pack, sign, unpack
from server.dialects.openai_chat.decode import decode as decode_chat
from server.dialects.openai_chat.schema import ChatRequest
from server.errors import InvalidRequest
from server.service.job import ChatPrompt, GenerationJob

USER = {"role": "user", "content": "hi"}
CACHED = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}


def decoded(**fields: Any) -> tuple[GenerationJob, ChatPrompt, list[str]]:
    body = {"max_tokens": 9, "messages": [USER], **fields}
    job, ignored = decode(MessagesRequest.model_validate(body), "1")
    (prompt,) = job.prompts
    assert isinstance(prompt, ChatPrompt)
    return job, prompt, ignored


def test_a_conversation_is_what_it_is_through_openais_chat() -> None:
    """The same prompt, so that the prefix cache does not ask through which API a conversation comes."""
    schema = {"properties": {"city": {"type": "string"}}, "type": "object"}
    _, prompt, ignored = decoded(
        system=[{"type": "text", "text": "Be brief.", **CACHED}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Rain?", **CACHED}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "I ask.", "signature": "EsIBCkgIARABGAI"},
                    {"type": "text", "text": "Let me"},
                    {"type": "text", "text": " see."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Köln"}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "wet"}]},
        ],
        tools=[{"name": "weather", "description": "Weather", "input_schema": schema, **CACHED}],
    )
    call = {"name": "weather", "arguments": '{"city": "Köln"}'}
    body = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Rain?"},
            {
                "role": "assistant",
                "content": "Let me see.",
                "reasoning_content": "I ask.",
                "tool_calls": [{"id": "t1", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "wet"},
        ],
        "tools": [
            {"type": "function", "function": {"name": "weather", "description": "Weather", "parameters": schema}}
        ],
    }
    (expected,) = decode_chat(ChatRequest.model_validate(body), "1")[0].prompts
    assert isinstance(expected, ChatPrompt)
    assert prompt == expected
    assert json.dumps(prompt.tools) == json.dumps(expected.tools)
    assert ignored == []


def test_results_stand_before_what_the_user_says_beside_them() -> None:
    calls: list[Any] = [{"type": "tool_use", "id": name, "name": "f", "input": {}} for name in ("a", "b")]
    results = [
        {"type": "text", "text": "and now?"},
        {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "x"}], "is_error": False},
        {"type": "tool_result", "tool_use_id": "b", "content": "no such file", "is_error": True},
        {"type": "text", "text": "(be quick)"},
    ]
    messages = [USER, {"role": "assistant", "content": calls}, {"role": "user", "content": results}]
    _, prompt, _ = decoded(messages=messages)
    assert [(each["role"], each["content"]) for each in prompt.messages[2:]] == [
        ("tool", "x"),
        ("tool", "Error: no such file"),
        ("user", "and now?\n(be quick)"),
    ]


def test_a_system_message_among_the_others_stays_in_its_place() -> None:
    _, prompt, _ = decoded(system="A", messages=[USER, {"role": "system", "content": "B"}])
    assert [(each["role"], each["content"]) for each in prompt.messages] == [
        ("system", "A"),
        ("user", "hi"),
        ("system", "B"),
    ]


def test_an_assistants_last_message_is_continued() -> None:
    _, prompt, _ = decoded(messages=[USER, {"role": "assistant", "content": "It is ("}])
    assert prompt.ending == "continued"


def test_what_is_not_obeyed_is_named() -> None:
    _, prompt, ignored = decoded(
        tools=[
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 3},
            {"name": "f", "input_schema": {"type": "object"}, "defer_loading": True},
        ],
        messages=[USER, {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}, USER],
        context_management={
            "edits": [{"type": "clear_tool_uses_20250919"}, {"type": "clear_thinking_20251015", "keep": "all"}]
        },
        metadata={"user_id": "me"},
        service_tier="auto",
        shiny=1,
    )
    assert sorted(ignored) == [
        "context_management.clear_tool_uses_20250919",
        "messages.content.redacted_thinking",
        "shiny",
        "tools.defer_loading",
        "tools.web_search_20250305",
    ]
    assert [tool["function"]["name"] for tool in prompt.tools] == ["f"]


@pytest.mark.parametrize(
    ("fields", "kwargs", "budget"),
    [
        ({}, {}, None),
        ({"thinking": {"type": "adaptive"}}, {}, None),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False, "thinking": False}, 0),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2048}},
            {"enable_thinking": True, "thinking": True, "thinking_budget": 2048},
            2048,
        ),
        ({"output_config": {"effort": "high"}}, {"reasoning_effort": "high"}, None),
    ],
)
def test_thinking(fields: dict[str, Any], kwargs: dict[str, Any], budget: int | None) -> None:
    job, prompt, ignored = decoded(**fields)
    assert (prompt.template_kwargs, job.thinking_budget, ignored) == (kwargs, budget, [])


@pytest.mark.parametrize(
    ("choice", "offered", "must_call", "parallel"),
    [
        ({"type": "auto"}, ["f", "g"], False, True),
        ({"type": "auto", "disable_parallel_tool_use": True}, ["f", "g"], False, False),
        ({"type": "any"}, ["f", "g"], True, True),
        ({"type": "tool", "name": "g"}, ["g"], True, True),
        ({"type": "none"}, [], False, True),
    ],
)
def test_tool_choice(choice: dict[str, Any], offered: list[str], must_call: bool, parallel: bool) -> None:
    tools = [{"name": name, "input_schema": {"type": "object"}} for name in "fg"]
    _, prompt, _ = decoded(tools=tools, tool_choice=choice)
    assert [tool["function"]["name"] for tool in prompt.tools] == offered
    assert (prompt.must_call, prompt.parallel_tool_calls) == (must_call, parallel)


@given(thought=st.text(max_size=50))
def test_a_signature_brings_back_the_thought_that_it_holds(thought: str) -> None:
    assert unpack(pack(thought)) == thought
    assert unpack(sign(thought)) is None


def test_a_signature_that_stands_for_too_much_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        unpack(pack("a" * (5 << 20)))


def test_signatures_that_stand_for_too_much_together_are_refused() -> None:
    block = {"type": "thinking", "thinking": "", "signature": pack("a" * (3 << 20))}
    with pytest.raises(InvalidRequest) as caught:
        decoded(messages=[USER, {"role": "assistant", "content": [block, block]}, USER])
    assert caught.value.param == "messages.1.content.1.signature"


def test_the_docs_name_every_field() -> None:
    text = (Path(__file__).parents[4] / "docs" / "messages.md").read_text("utf-8")
    named = set(re.findall(r"`([a-z_]+)`", text))
    beta = {"anthropic_beta", "anthropic_version", "user_profile_id", "workspace_id", "billing_policy"}
    assert {*MessagesRequest.model_fields, *UNSUPPORTED, *NO_EFFECT} - named <= {*beta, "fallback_credit_token"}


# --- any JSON

_NAMES = ("type", "text", "thinking", "signature", "id", "name", "input", "tool_use_id", "content", "is_error")
_WORDS = (
    "user",
    "assistant",
    "system",
    "text",
    "tool_use",
    "tool_result",
    "t1",
    "",
    "\ud800",
    "pippin.thought.",
    "any",
)
_LEAVES = st.sampled_from([None, True, 0, -1, 1.5, 2**70, *_WORDS])
_ANY = _LEAVES | st.lists(_LEAVES, max_size=2) | st.dictionaries(st.sampled_from(_NAMES), _LEAVES, max_size=2)
_BLOCK = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "thinking", "tool_use", "tool_result", "redacted_thinking"])},
    optional={name: _ANY for name in _NAMES if name != "type"},
)
_MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.lists(_BLOCK | _ANY, max_size=3) | _ANY}
)
_BODIES = st.fixed_dictionaries(
    {"messages": st.lists(_MESSAGE, min_size=1, max_size=3)},
    optional={name: _ANY for name in ("system", "tools", "tool_choice", "thinking", "output_config")},
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=_BODIES)
def test_any_json_is_a_prompt_or_a_refusal_with_a_place(body: dict[str, Any]) -> None:
    try:
        fields = MessagesRequest.model_validate(body)
    except ValueError:
        return
    try:
        job, ignored = decode(fields, "1")
    except InvalidRequest as error:
        assert error.param
        return
    (prompt,) = job.prompts
    assert isinstance(prompt, ChatPrompt)
    assert all(isinstance(message["content"], str) for message in prompt.messages)
    assert all(isinstance(name, str) for name in ignored)
    json.dumps([message["content"] for message in prompt.messages], ensure_ascii=False).encode()
