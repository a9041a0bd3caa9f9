"""A stream adds up to the whole answer, whatever the events; items, numbers and ends are as OpenAI has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.dialects.openai_responses import encode
from server.dialects.openai_responses.encode import AnswerForm, Output
from server.dialects.openai_responses.sealed import seal, unseal
from server.dialects.openai_responses.tools import decode_tools
from server.errors import InternalError, InvalidRequest
from server.text.events import Finished, OutputEvent, ReasoningDelta, TextDelta, TokenText, ToolCallDelta, Usage

CUSTOM = {"type": "custom", "name": "shell", "description": "Runs it"}
INNER = {"type": "function", "name": "find", "parameters": {"type": "object", "properties": {}}}
NAMESPACE = {"type": "namespace", "name": "files", "description": "Files", "tools": [INNER]}
BOX = decode_tools([CUSTOM, NAMESPACE])
FORM = AnswerForm("0" * 48, BOX, '"store":false')
TEXTS = st.text(alphabet='ab"\\\né', max_size=3)
EVENTS = st.one_of(
    TEXTS.map(lambda text: TextDelta(0, text)),
    TEXTS.map(lambda text: ReasoningDelta(0, text)),
    st.sampled_from(["shell", "files__find", "other"]).map(
        lambda name: ToolCallDelta(0, 0, "call_1", name, '{"input": "ls\\n"}')
    ),
)
USAGE = Usage(5, 2, 4, num_reasoning_tokens=1)


def ended(events: Sequence[OutputEvent], reason: Any = "stop") -> list[OutputEvent]:
    return [*events, Finished(0, reason, 4), USAGE]


def streamed(events: Sequence[OutputEvent], form: AnswerForm = FORM) -> list[dict[str, Any]]:
    """The events of a stream of one batch each; their names are their types."""
    output = Output(form, "mock", 7, streams=True)
    return read(b"".join(output.encode([event]) for event in events))


def read(written: bytes) -> list[dict[str, Any]]:
    *blocks, rest = written.decode().split("\n\n")
    assert rest == ""
    found = []
    for block in blocks:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def whole(events: Sequence[OutputEvent], form: AnswerForm = FORM) -> dict[str, Any]:
    output = Output(form, "mock", 7, streams=False)
    output.add(events)
    found: dict[str, Any] = json.loads("".join(output.pieces()))
    return found


@settings(max_examples=40, deadline=None)
@given(st.lists(EVENTS, max_size=8), st.sampled_from(["stop", "length", "tool_calls"]), st.booleans())
def test_a_stream_adds_up_to_the_whole(events: list[OutputEvent], reason: str, as_summary: bool) -> None:
    form = AnswerForm("0" * 48, BOX, '"store":false', as_summary=as_summary, seals_thoughts=as_summary)
    found, answer = streamed(ended(events, reason), form), whole(ended(events, reason), form)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert [event["type"] for event in found[:2]] == ["response.created", "response.in_progress"]
    assert found[-1]["type"] == f"response.{answer['status']}"
    assert {**found[-1]["response"], "completed_at": 0} == {**answer, "completed_at": 0}
    items = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert items == answer["output"]
    for place, item in enumerate(items):
        mine = [event for event in found if event.get("output_index") == place]
        assert mine[0]["type"] == "response.output_item.added" and mine[0]["item"]["id"] == item["id"]
        assert mine[-1]["type"] == "response.output_item.done"
        said = "".join(event["delta"] for event in mine if event["type"].endswith(".delta"))
        assert said == text_of(item)
        done = [event for event in mine if event["type"].endswith(("_text.done", "arguments.done", "input.done"))]
        assert [event.get("text", event.get("arguments", event.get("input"))) for event in done] == [said]


def text_of(item: dict[str, Any]) -> str:
    if item["type"] == "message":
        return str(item["content"][0]["text"])
    if item["type"] == "reasoning":
        return str((item["summary"] or item["content"])[0]["text"])
    return str(item["input"] if item["type"] == "custom_tool_call" else item["arguments"])


def test_calls_are_those_that_the_client_knows() -> None:
    calls = [ToolCallDelta(0, 0, "c1", "shell", '{"input": "ls"}'), ToolCallDelta(0, 1, "c2", "files__find", "{}")]
    custom, named = whole(ended(calls, "tool_calls"))["output"]
    assert (custom["type"], custom["name"], custom["input"]) == ("custom_tool_call", "shell", "ls")
    assert (named["type"], named["name"], named["namespace"]) == ("function_call", "find", "files")


def test_a_custom_call_without_its_text_is_given_as_it_is() -> None:
    (call,) = whole(ended([ToolCallDelta(0, 0, "c1", "shell", '{"command": "ls"}')]))["output"]
    assert call["input"] == '{"command": "ls"}'


@pytest.mark.parametrize(
    ("reason", "events", "kinds", "status"),
    [
        ("stop", [], ["message"], "completed"),
        ("stop", [ReasoningDelta(0, "hm")], ["reasoning", "message"], "completed"),
        ("length", [ReasoningDelta(0, "hm")], ["reasoning"], "incomplete"),
        ("length", [TextDelta(0, "so")], ["message"], "incomplete"),
        ("length", [], [], "incomplete"),
    ],
)
def test_the_ends_of_answers(reason: str, events: list[OutputEvent], kinds: list[str], status: str) -> None:
    answer = whole(ended(events, reason))
    assert ([item["type"] for item in answer["output"]], answer["status"]) == (kinds, status)
    assert answer["incomplete_details"] == ({"reason": "max_output_tokens"} if status == "incomplete" else None)
    if answer["output"]:
        assert answer["output"][-1]["status"] == status


def test_thoughts_that_are_not_shown_leave_nothing() -> None:
    form = AnswerForm("0" * 48, BOX, '"store":false', shows_thoughts=False)
    answer = whole(ended([ReasoningDelta(0, "hm"), TextDelta(0, "so")]), form)
    assert [item["type"] for item in answer["output"]] == ["message"]


def test_tokens_that_are_no_text_yet_come_with_the_next() -> None:
    tokens = [TokenText(1, "n", b"n", -0.5), TokenText(2, "o", b"o", -1.0, (TokenText(2, "o", b"o", -1.0),))]
    events = ended([TextDelta(0, "", (tokens[0],)), TextDelta(0, "no", (tokens[1],))])
    (delta,) = [event for event in streamed(events) if event["type"] == "response.output_text.delta"]
    assert [each["token"] for each in delta["logprobs"]] == ["n", "o"]
    (message,) = whole(events)["output"]
    top = {"token": "o", "bytes": [111], "logprob": -1.0}
    assert message["content"][0]["logprobs"] == [
        {"token": "n", "bytes": [110], "logprob": -0.5, "top_logprobs": []},
        {**top, "top_logprobs": [top]},
    ]


@pytest.mark.parametrize("begun", [True, False])
def test_what_goes_wrong_ends_the_response(begun: bool) -> None:
    output = Output(FORM, "mock", 7, streams=True)
    first = output.encode([TextDelta(0, "so")]) if begun else b""
    found = read(first + output.fail(InternalError("it \ud800 broke")))
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert [event["type"] for event in found[-2:]] == ["error", "response.failed"]
    assert (found[-2]["code"], found[-2]["message"]) == ("internal_error", "it ? broke")
    response = found[-1]["response"]
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert [item["status"] for item in response["output"]] == ["incomplete"] * begun


def test_a_refusal_in_a_stream_is_no_fault_of_the_server() -> None:
    output = Output(FORM, "mock", 7, streams=True)
    assert read(output.fail(InvalidRequest("no")))[-1]["response"]["error"]["code"] == "invalid_prompt"


def test_an_answer_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "MOST_CHARS", 8)
    with pytest.raises(InvalidRequest, match="larger than"):
        whole([TextDelta(0, "123456789")])


@given(st.text(max_size=20))
def test_a_sealed_thought_can_be_read_back(text: str) -> None:
    try:
        sealed = seal(text)
    except UnicodeEncodeError:
        return  # no detokenizer writes half of a surrogate pair
    assert sealed is not None and unseal(sealed) == text


@pytest.mark.parametrize("sealed", ["", "gAAAAAB", "pippin1.!!", "pippin1.4pyT4p", "pippin1._w==", "pippin2.aG0="])
def test_what_another_sealed_is_passed_over(sealed: str) -> None:
    assert unseal(sealed) == ""
