"""From the body of a chat completion to a job."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from server.dialects.openai_chat.decode import decode
from server.dialects.openai_chat.schema import ChatRequest
from server.errors import InvalidRequest, UnsupportedParameter
from server.service.job import ChatPrompt, GenerationJob

HI = [{"role": "user", "content": "hi"}]


def decoded(**body: Any) -> tuple[GenerationJob, list[str]]:
    return decode(ChatRequest.model_validate({"messages": HI, **body}), "r1")


def test_messages() -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "me"},
        {"role": "assistant", "content": "c", "tool_calls": None},
        {"role": "tool", "content": "d", "tool_call_id": "t1"},
    ]
    job, ignored = decoded(messages=messages, chat_template_kwargs={"enable_thinking": False})
    expected = (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab", "name": "me"},
        {"role": "assistant", "content": "c"},
        {"role": "tool", "content": "d", "tool_call_id": "t1"},
    )
    assert job.prompts == (ChatPrompt(expected, {"enable_thinking": False}),)
    assert ignored == []


@pytest.mark.parametrize(
    ("messages", "location"),
    [
        ([], ("messages",)),
        ({}, ("messages",)),
        ("hi", ("messages",)),
        (["hi"], ("messages", 0)),
        ([{"content": "x"}], ("messages", 0, "role")),
        ([{"role": "robot", "content": "x"}], ("messages", 0, "role")),
        ([{"role": "user"}], ("messages", 0, "content")),
        ([*HI, {"role": "user", "content": None}], ("messages", 1, "content")),
        ([{"role": "user", "content": 7}], ("messages", 0, "content")),
        ([{"role": "user", "content": []}], ("messages", 0, "content")),
        ([{"role": "user", "content": ["x"]}], ("messages", 0, "content")),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], ("messages", 0, "content")),
        ([{"role": "user", "content": [{"type": "text"}]}], ("messages", 0, "content")),
        ([{"role": "user", "content": "\ud800"}], ("messages", 0, "content")),
        ([{"role": "user", "content": "x", "name": 7}], ("messages", 0, "name")),
    ],
)
def test_bad_messages(messages: Any, location: tuple[Any, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        decoded(messages=messages)
    assert caught.value.errors()[0]["loc"] == location


def test_defaults() -> None:
    job, ignored = decoded()
    assert (job.request_id, job.n, job.max_tokens, job.default_max_tokens) == ("chatcmpl-r1", 1, None, None)
    assert (job.prompt_param, job.sampling.num_logprobs) == ("messages", None)
    assert ignored == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 5}, 5),
    ],
)
def test_max_tokens(fields: dict[str, int], expected: int) -> None:
    assert decoded(**fields)[0].max_tokens == expected


def test_two_max_tokens_that_differ() -> None:
    with pytest.raises(InvalidRequest) as caught:
        decoded(max_tokens=5, max_completion_tokens=6)
    assert caught.value.param == "max_completion_tokens"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_logprobs(fields: dict[str, Any], expected: int | None) -> None:
    assert decoded(**fields)[0].sampling.num_logprobs == expected


def test_top_logprobs_need_logprobs() -> None:
    with pytest.raises(InvalidRequest) as caught:
        decoded(top_logprobs=2)
    assert caught.value.param == "top_logprobs"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logprobs", 1),
        ("top_logprobs", 21),
        ("max_completion_tokens", 0),
        ("chat_template_kwargs", []),
    ],
)
def test_bad_fields(name: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        decoded(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("function_call", {"name": "f"}),
        ("response_format", {"type": "json_object"}),
        ("audio", {}),
        ("modalities", ["text", "audio"]),
        ("prediction", {}),
        ("reasoning_effort", "high"),
        ("best_of", 2),
        ("chat_template", "{{ x }}"),
    ],
)
def test_unsupported(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        decoded(**{name: value})
    assert caught.value.param == name


def test_unsupported_in_a_message() -> None:
    message = {"role": "assistant", "content": "x", "tool_calls": [{}]}
    with pytest.raises(UnsupportedParameter) as caught:
        decoded(messages=[*HI, message])
    assert caught.value.param == "messages.1.tool_calls"


def test_fields_without_effect_are_not_ignored_fields() -> None:
    fields = {"metadata": {}, "store": True, "service_tier": "auto", "user": "me", "tool_choice": "none", "tools": []}
    assert decoded(**fields, modalities=["text"], response_format={"type": "text"})[1] == []


def test_unknown_fields() -> None:
    message = {"role": "assistant", "content": "x", "reasoning_content": "hm"}
    assert decoded(foo=1, messages=[message])[1] == ["foo", "messages.reasoning_content"]
