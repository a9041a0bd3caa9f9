"""Any answer: a stream adds up to the whole, its events are in order, and no block of text is blank."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from server.dialects.anthropic_messages.encode import MessageEncoder, MessageFold, MessageHead
from server.text.events import Finished, OutputEvent, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from tests.server.dialects.anthropic_messages.serving import events_of

_TEXTS = st.sampled_from(["a", " ", "\n", "", 'é"', " b"])


@st.composite
def answers(draw: st.DrawFn) -> list[list[OutputEvent]]:
    """The batches of one answer."""
    calls = st.builds(ToolCallDelta, st.just(0), st.integers(0, 3), st.just("t"), st.just("f"), st.just('{"a": 1}'))
    deltas = st.builds(TextDelta, st.just(0), _TEXTS) | st.builds(ReasoningDelta, st.just(0), _TEXTS) | calls
    reason: Any = draw(st.sampled_from(["stop", "length", "tool_calls"]))
    end = Finished(0, reason, 7, 2, stop=draw(st.none() | st.just("END")) if reason == "stop" else None)
    events: list[OutputEvent] = [*draw(st.lists(deltas, max_size=9)), end, Usage(9, 4, 7, 0, 2)]
    size = draw(st.integers(1, 4))
    return [events[start : start + size] for start in range(0, len(events), size)]


@given(batches=answers(), hides=st.booleans(), is_cut=st.booleans(), with_edits=st.booleans())
def test_a_stream_adds_up_to_the_whole(
    batches: list[list[OutputEvent]], hides: bool, is_cut: bool, with_edits: bool
) -> None:
    head = MessageHead("msg_1", "mock", 9, 4, is_cut, hides, with_edits)
    encoder, fold = MessageEncoder(head), MessageFold(head)
    events = events_of(b"".join(map(encoder.encode, batches)).decode())
    for batch in batches:
        fold.add(batch)
    whole = json.loads("".join(fold.pieces()))
    assert whole["usage"]["input_tokens"] + whole["usage"]["cache_read_input_tokens"] == 9
    assert added_up(events) == whole
    for block in whole["content"]:
        assert block["type"] != "text" or block["text"].strip()
        assert block["type"] != "thinking" or (block["signature"] and (block["thinking"] == "") == hides)


def added_up(events: list[tuple[str, Any]]) -> dict[str, Any]:
    """What a client makes of the events, which come in order."""
    (first, start), *middle, (almost, delta), (last, _) = events
    assert (first, almost, last) == ("message_start", "message_delta", "message_stop")
    message: dict[str, Any] = start["message"]
    assert (message["content"], message["stop_reason"]) == ([], None)
    is_open = False
    for name, event in middle:
        if name == "content_block_start":
            assert not is_open
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
        elif name == "content_block_delta":
            assert is_open
            assert event["index"] == len(message["content"]) - 1
            add(message["content"][-1], event["delta"])
        elif name == "content_block_stop":
            assert is_open
        is_open = name != "content_block_stop" and (is_open or name == "content_block_start")
    assert not is_open
    assert [name for name, _ in middle].count("ping") == bool(message["content"])
    return {**message, **delta["delta"], "usage": delta["usage"], **edits_of(delta)}


def edits_of(event: dict[str, Any]) -> dict[str, Any]:
    return {"context_management": event["context_management"]} if "context_management" in event else {}


def add(block: dict[str, Any], delta: dict[str, Any]) -> None:
    kind = delta.pop("type")
    ((name, text),) = delta.items()
    if kind == "input_json_delta":
        block["input"] = json.loads(text)
        return
    assert kind == ("signature_delta" if name == "signature" else f"{block['type']}_delta")
    block[name] += text
