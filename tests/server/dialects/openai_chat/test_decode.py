"""From the body of a chat completion to a job."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from server.dialects.openai_chat.decode import decode, decode_form
from server.dialects.openai_chat.schema import ChatRequest
from server.errors import InvalidRequest, UnsupportedParameter
from server.service.job import ChatPrompt, GenerationJob

HI = [{"role": "user", "content": "hi"}]


def request(**body: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": HI, **body})


def decoded(**body: Any) -> tuple[GenerationJob, list[str]]:
    return decode(request(**body), "r1")


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
    assert (job.names.prompt, job.sampling.num_logprobs) == ("messages", None)
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
        ("tool_choice", "sometimes"),
        ("tool_choice", 7),
        ("parallel_tool_calls", "no"),
        ("reasoning_effort", "huge"),
        ("reasoning", "low"),
        ("reasoning", {"effort": "huge"}),
        ("reasoning", {"enabled": "yes"}),
        ("reasoning", {"max_tokens": -1}),
        ("reasoning", {"max_tokens": True}),
        ("thinking", {}),
        ("thinking", {"type": "sometimes"}),
        ("thinking", {"type": "enabled", "budget_tokens": "many"}),
        ("thinking", [1]),
        ("think", "huge"),
        ("think", 1),
        ("enable_thinking", "no"),
        ("enable_thinking", 0),
        ("verbosity", "huge"),
        ("include_reasoning", "no"),
        ("reasoning_format", "raw"),
        ("functions", {}),
        ("functions", [{}]),
        ("function_call", "sometimes"),
        ("function_call", 7),
        ("tools", {}),
        ("prediction", {}),
        ("prediction", "text"),
        ("prediction", {"type": "content", "content": [{"type": "image"}]}),
        ("speculation", "fast"),
    ],
)
def test_bad_fields(name: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        decoded(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("audio", {}),
        ("modalities", ["text", "audio"]),
        ("best_of", 2),
        ("chat_template", "{{ x }}"),
    ],
)
def test_unsupported(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        decoded(**{name: value})
    assert caught.value.param == name


def test_unsupported_in_a_message() -> None:
    message = {"role": "assistant", "content": "x", "prefill": True}
    with pytest.raises(UnsupportedParameter) as caught:
        decoded(messages=[*HI, message])
    assert caught.value.param == "messages.1.prefill"


SAID = {"role": "assistant", "content": "x"}


@pytest.mark.parametrize(
    ("body", "ending"),
    [
        ({}, "answer"),
        ({"add_generation_prompt": True, "continue_final_message": False}, "answer"),
        ({"messages": [*HI, SAID]}, "answer"),
        ({"messages": [*HI, SAID], "add_generation_prompt": False}, "closed"),
        ({"messages": [*HI, SAID], "add_generation_prompt": False, "continue_final_message": True}, "continued"),
        ({"messages": [*HI, SAID], "continue_final_message": True}, "continued"),
        ({"messages": [*HI, {**SAID, "prefix": True}]}, "continued"),
        ({"messages": [*HI, {**SAID, "partial": True}]}, "continued"),
        ({"messages": [*HI, {**SAID, "prefix": False}, *HI]}, "answer"),
    ],
)
def test_the_last_message_is_continued_where_that_is_asked(body: dict[str, Any], ending: str) -> None:
    assert prompt_of(**body).ending == ending
    assert decoded(**body)[1] == []


@pytest.mark.parametrize(
    ("messages", "fields", "param"),
    [
        ([*HI, SAID], {"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ([*HI, {**SAID, "prefix": True}], {"add_generation_prompt": True}, "messages.1.prefix"),
        (HI, {"continue_final_message": True}, "continue_final_message"),
        ([{**HI[0], "prefix": True}], {}, "messages.0.prefix"),
        ([{**SAID, "prefix": True}, *HI], {}, "messages.0.prefix"),
        (
            [{**SAID, "tool_calls": [{"function": {"name": "f"}}]}],
            {"continue_final_message": True},
            "continue_final_message",
        ),
    ],
)
def test_what_cannot_be_continued(messages: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decoded(messages=messages, **fields)
    assert caught.value.param == param


F, G = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}, {"name": "g"}


@pytest.mark.parametrize(
    ("call", "names", "must_call"),
    [(None, ["f", "g"], False), ("auto", ["f", "g"], False), ("none", [], False), ({"name": "g"}, ["g"], True)],
)
def test_functions_are_tools(call: object, names: list[str], must_call: bool) -> None:
    prompt = prompt_of(functions=[F, G], **({} if call is None else {"function_call": call}))
    assert [tool["function"]["name"] for tool in prompt.tools] == names
    assert prompt.must_call == must_call
    assert not prompt.parallel_tool_calls
    assert decoded(functions=[], function_call="none")[1] == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"functions": [F], "function_call": {"name": "x"}}, "function_call"),
        ({"functions": [F], "function_call": {}}, "function_call"),
        ({"functions": [F], "tools": [{"type": "function", "function": F}]}, "functions"),
        ({"function_call": {"name": "x"}}, "function_call"),
    ],
)
def test_functions_that_are_not_there(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decoded(**fields)
    assert caught.value.param == param


def test_fields_without_effect_are_not_ignored_fields() -> None:
    fields = {"metadata": {}, "store": True, "service_tier": "auto", "user": "me", "tool_choice": "none", "tools": []}
    assert decoded(**fields, modalities=["text"], response_format={"type": "text"})[1] == []


def test_unknown_fields() -> None:
    message = {"role": "assistant", "content": "x", "mood": "good"}
    assert decoded(foo=1, messages=[message])[1] == ["foo", "messages.mood"]


# --- tools

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def prompt_of(**body: Any) -> ChatPrompt:
    (prompt,) = decoded(**body)[0].prompts
    assert isinstance(prompt, ChatPrompt)
    return prompt


def test_tools_go_to_the_template_as_they_are() -> None:
    described = {**WEATHER["function"], "description": "Weather", "strict": True}
    for tool in (WEATHER, {"type": "function", "function": described}):
        assert prompt_of(tools=[tool]).tools == (tool,)
    assert prompt_of(tools=[WEATHER], tool_choice="auto").tools == (WEATHER,)


def test_a_required_and_a_named_tool() -> None:
    other = {"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}}
    named = {"type": "function", "function": {"name": "other"}}
    for choice, tools, must_call in (
        ("auto", (WEATHER, other), False),
        ("required", (WEATHER, other), True),
        (named, (other,), True),
    ):
        prompt = prompt_of(tools=[WEATHER, other], tool_choice=choice)
        assert (prompt.tools, prompt.must_call) == (tools, must_call)


@pytest.mark.parametrize(
    ("choice", "tools"),
    [
        ("required", []),
        ("required", None),
        ({"type": "function", "function": {"name": "nobody"}}, [WEATHER]),
        ({"type": "function"}, [WEATHER]),
        ({}, [WEATHER]),
        ({"type": "allowed_tools"}, [WEATHER]),
    ],
)
def test_a_choice_that_cannot_be(choice: Any, tools: Any) -> None:
    with pytest.raises(InvalidRequest, match="tool_choice"):
        decoded(tools=tools, tool_choice=choice)


@pytest.mark.parametrize("given", [{}, {"parameters": None}, {"parameters": {}}])
def test_a_tool_without_parameters_has_the_schema_of_none(given: dict[str, Any]) -> None:
    (tool,) = prompt_of(tools=[{"type": "function", "function": {"name": "f", **given}}]).tools
    assert tool["function"] == {"name": "f", "parameters": {"type": "object", "properties": {}}}


@pytest.mark.parametrize("body", [{"tool_choice": "none", "tools": [WEATHER]}, {"tools": []}, {"tools": None}, {}])
def test_tools_that_are_not_to_be_used_are_not_shown(body: dict[str, Any]) -> None:
    assert prompt_of(**body).tools == ()


@pytest.mark.parametrize(("value", "expected"), [(None, True), (True, True), (False, False)])
def test_parallel_tool_calls(value: Any, expected: bool) -> None:
    prompt = prompt_of(tools=[WEATHER], parallel_tool_calls=value)
    assert prompt.parallel_tool_calls is expected


@pytest.mark.parametrize(
    ("tool", "location"),
    [
        ({"type": "custom", "custom": {}}, ("type",)),
        ({"function": {"name": "f"}}, ("type",)),
        ({"type": "function"}, ("function",)),
        ({"type": "function", "function": {}}, ("function", "name")),
        ({"type": "function", "function": {"name": ""}}, ("function", "name")),
        ({"type": "function", "function": {"name": "a b"}}, ("function", "name")),
        ({"type": "function", "function": {"name": "f\n"}}, ("function", "name")),
        ({"type": "function", "function": {"name": "x" * 65}}, ("function", "name")),
        ({"type": "function", "function": {"name": "f", "parameters": []}}, ("function", "parameters")),
        ({"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}, ("function", "parameters")),
        ({"type": "function", "function": {"name": "f", "parameters": {"properties": []}}}, ("function", "parameters")),
    ],
)
def test_bad_tools(tool: Any, location: tuple[Any, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        decoded(tools=[WEATHER, tool])
    assert caught.value.errors()[0]["loc"] == ("tools", 1, *location)


# --- what was said before


def messages_of(*messages: dict[str, Any]) -> list[Any]:
    return list(prompt_of(messages=list(messages)).messages)


def called(arguments: Any, **more: Any) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}, **more}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": 1}', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        ("", {}),
        ("{", "{"),
        ("7", "7"),
        ("[" * 100_000, "[" * 100_000),
    ],
    ids=lambda value: str(value)[:10],
)
def test_calls_are_objects_for_the_template(arguments: Any, expected: Any) -> None:
    message, result = messages_of(called(arguments, index=0), {"role": "tool", "tool_call_id": "c1", "content": "5"})
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": expected}}
    assert message == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert result == {"role": "tool", "content": "5", "tool_call_id": "c1"}


def test_calls_of_the_older_api_become_calls_with_ids() -> None:
    calling = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    result = {"role": "function", "name": "f", "content": "5"}
    message, answer = messages_of(calling, result)
    call = {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": {}}}
    assert message == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert answer == {"role": "tool", "name": "f", "content": "5", "tool_call_id": "call_0"}
    assert messages_of(result) == [{"role": "tool", "name": "f", "content": "5"}]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_earlier_reasoning_goes_to_the_template(name: str) -> None:
    said = {"role": "assistant", "content": "x", name: "hm"}
    assert messages_of(said) == [{"role": "assistant", "content": "x", "reasoning_content": "hm"}]
    assert messages_of({"role": "assistant", "content": None, name: "hm"})[0]["content"] == ""
    assert messages_of({"role": "user", "content": "x", name: "hm"}) == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("message", "location"),
    [
        ({"role": "assistant"}, ("content",)),
        ({"role": "assistant", "content": None}, ("content",)),
        ({"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}, ("tool_calls",)),
        ({"role": "tool", "content": "x", "function_call": {"name": "f"}}, ("function_call",)),
        ({"role": "assistant", "tool_calls": [{"type": "custom", "custom": {}}]}, ("tool_calls", 0, "type")),
        ({"role": "assistant", "tool_calls": [{"function": {"name": 7}}]}, ("tool_calls", 0, "function", "name")),
        ({"role": "assistant", "tool_calls": [{"id": 7, "function": {"name": "f"}}]}, ("tool_calls", 0, "id")),
    ],
)
def test_bad_calls(message: Any, location: tuple[Any, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        decoded(messages=[message])
    assert caught.value.errors()[0]["loc"] == ("messages", 0, *location)


# --- reasoning

ON = {"enable_thinking": True, "thinking": True}
OFF = {"enable_thinking": False, "thinking": False}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {}),
        ({"reasoning_effort": "default"}, {}),
        ({"reasoning_effort": "auto", "reasoning": {"effort": None}}, {}),
        ({"reasoning_effort": "high"}, {"reasoning_effort": "high", **ON}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", **OFF}),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True, "x": 1}},
            {"reasoning_effort": "none", "enable_thinking": True, "thinking": False, "x": 1},
        ),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "max"}},
            {"reasoning_effort": "max", **ON},
        ),
        ({"enable_thinking": False}, OFF),
        ({"enable_thinking": True}, ON),
        ({"think": False}, OFF),
        ({"think": True}, ON),
        ({"think": "low"}, {"reasoning_effort": "low", **ON}),
        ({"thinking": {"type": "disabled"}}, OFF),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, {"thinking_budget": 9, **ON}),
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"thinking": False}, OFF),
        ({"thinking": True, "enable_thinking": True, "reasoning_effort": "low"}, {"reasoning_effort": "low", **ON}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low", **ON}),
        ({"reasoning": {"enabled": False}}, OFF),
        ({"reasoning": {"max_tokens": 7, "exclude": True}}, {"thinking_budget": 7}),
        ({"reasoning": {}}, {}),
        ({"verbosity": "low"}, {"verbosity": "low"}),
        ({"include_reasoning": True, "reasoning_format": "parsed"}, {}),
    ],
)
def test_what_is_said_of_reasoning_is_told_the_template(body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert prompt_of(**body).template_kwargs == expected
    job, ignored = decoded(**body)
    assert ignored == []
    is_off = expected.get("enable_thinking") is False
    assert job.thinking_budget == (0 if is_off else expected.get("thinking_budget"))
    assert not job.needs_reasoning


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"enable_thinking": True, "reasoning_effort": "none"}, "reasoning_effort"),
        ({"enable_thinking": False, "thinking": {"type": "enabled"}}, "thinking"),
        ({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}, "reasoning.effort"),
        ({"think": True, "reasoning": {"enabled": False}}, "think"),
        ({"thinking_budget": 3, "reasoning": {"max_tokens": 4}}, "reasoning.max_tokens"),
    ],
)
def test_wishes_that_contradict(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest, match="contradict") as caught:
        decoded(**body)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, ("reasoning_content",)),
        ({"include_reasoning": False}, ()),
        ({"reasoning": {"exclude": True}}, ()),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, ()),
        ({"reasoning_format": "hidden"}, ()),
        ({"include_reasoning": True, "reasoning": {"exclude": False}}, ("reasoning_content",)),
    ],
)
def test_reasoning_that_nobody_wants_to_see(body: dict[str, Any], names: tuple[str, ...]) -> None:
    assert decode_form(request(**body), "reasoning_content").reasoning_names == names


@pytest.mark.parametrize(
    ("field", "names"),
    [("reasoning", ("reasoning",)), ("both", ("reasoning_content", "reasoning")), ("none", ())],
)
def test_the_field_of_reasoning(field: str, names: tuple[str, ...]) -> None:
    assert decode_form(request(), field).reasoning_names == names


def test_names_within_that_nobody_knows() -> None:
    body = {"thinking": {"type": "enabled", "mood": 1}, "reasoning": {"colour": "red"}}
    assert decoded(**body)[1] == ["thinking.mood", "reasoning.colour"]


# --- what agents send


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"role": "tool", "tool_call_id": "c", "content": None}, ""),
        ({"role": "tool", "tool_call_id": "c", "content": []}, ""),
        ({"role": "tool", "tool_call_id": "c"}, ""),
        ({"role": "assistant", "content": None, "tool_calls": []}, ""),
        ({"role": "assistant", "content": []}, ""),
    ],
)
def test_messages_that_say_nothing(message: dict[str, Any], content: str) -> None:
    assert prompt_of(messages=[*HI, message]).messages[1]["content"] == content


@pytest.mark.parametrize(
    ("choice", "must_call", "names"),
    [
        ({"type": "auto"}, False, ["f", "a.g"]),
        ({"type": "none"}, False, []),
        ({"type": "any"}, True, ["f", "a.g"]),
        ({"type": "required"}, True, ["f", "a.g"]),
        ({"type": "function", "name": "a.g"}, True, ["a.g"]),
        ({"type": "function", "function": {"name": "f"}}, True, ["f"]),
    ],
)
def test_choices_as_other_apis_have_them(choice: dict[str, Any], must_call: bool, names: list[str]) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("f", "a.g")]
    prompt = prompt_of(tools=tools, tool_choice=choice)
    assert (prompt.must_call, [tool["function"]["name"] for tool in prompt.tools]) == (must_call, names)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"type": "object", "properties": None}, {"type": "object", "properties": {}}),
        ({"type": ["object", "null"], "properties": {"x": {}}}, {"type": "object", "properties": {"x": {}}}),
        ({"$ref": "#/$defs/A", "$defs": {"A": {}}}, {"$ref": "#/$defs/A", "$defs": {"A": {}}}),
    ],
)
def test_parameters_as_libraries_write_them(parameters: dict[str, Any], expected: dict[str, Any]) -> None:
    prompt = prompt_of(tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}])
    assert prompt.tools[0]["function"]["parameters"] == expected
