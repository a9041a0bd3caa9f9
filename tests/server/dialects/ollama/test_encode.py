"""Events as lines and as their fold: each line stands alone, and together they say what the fold says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.dialects.fold import MOST_CHARS
from server.dialects.ollama.encode import Fold, LineEncoder, nanoseconds, timestamp
from server.errors import InvalidRequest
from server.service.timings import JobTimings
from server.text.events import Finished, OutputEvent, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from tests.server.dialects.streams import token

TOOK = JobTimings(total_s=4.0, load_s=1.0, prompt_s=0.5, output_s=2.5)
END: list[OutputEvent] = [Finished(0, "stop", 5), Usage(7, 2, 5)]

_texts = st.text(max_size=8)
_events = st.one_of(
    st.builds(TextDelta, st.just(0), _texts),
    st.builds(TextDelta, st.just(0), _texts, st.lists(st.builds(token, st.text(min_size=1)), max_size=2).map(tuple)),
    st.builds(ReasoningDelta, st.just(0), _texts),
    st.builds(ToolCallDelta, st.just(0), st.integers(0, 3), _texts, _texts, st.just('{"x":1}')),
)


def lines_of(kind: Any, *batches: list[OutputEvent]) -> list[dict[str, Any]]:
    encoder = LineEncoder(kind, "m", lambda: TOOK)
    written = b"".join(map(encoder.encode, batches)).decode()
    assert written.endswith("\n") or not written
    return [json.loads(line) for line in written.split("\n")[:-1]]


def folded(kind: Any, *batches: list[OutputEvent]) -> dict[str, Any]:
    fold = Fold(kind, "m")
    for batch in batches:
        fold.add(batch)
    return dict(json.loads(fold.write(TOOK)))


@settings(max_examples=60)
@given(st.lists(_events, max_size=8), st.integers(1, 3))
def test_the_lines_of_a_chat_add_up_to_the_whole(events: list[OutputEvent], size: int) -> None:
    batches = [[*events, *END][start : start + size] for start in range(0, len(events) + 2, size)]
    lines, whole = lines_of("chat", *batches), folded("chat", *batches)
    messages = [line["message"] for line in lines]
    assert "".join(message["content"] for message in messages) == whole["message"]["content"]
    assert "".join(message.get("thinking", "") for message in messages) == whole["message"].get("thinking", "")
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    assert calls == whole["message"].get("tool_calls", [])
    assert [each for line in lines for each in line.get("logprobs", ())] == whole.get("logprobs", [])
    changing = ("created_at", "message", "logprobs")
    last = {name: value for name, value in lines[-1].items() if name not in changing}
    assert last == {name: value for name, value in whole.items() if name not in changing}


def test_what_it_took_is_in_nanoseconds() -> None:
    (line,) = lines_of("generate", END)
    assert {name: line[name] for name in line if "duration" in name or "count" in name} == {
        **{"total_duration": 4_000_000_000, "load_duration": 1_000_000_000},
        **{"prompt_eval_count": 7, "prompt_eval_duration": 500_000_000},
        **{"eval_count": 5, "eval_duration": 2_500_000_000},
    }
    assert nanoseconds(0.0) == 1  # clients divide by it


def test_arguments_keep_their_digits_and_break_no_line() -> None:
    """Also those that no number of this language holds."""
    encoder = LineEncoder("chat", "m", lambda: TOOK)
    written = encoder.encode([ToolCallDelta(0, 0, "1", "f", '{"x": 1e999,\r\n "y": 0.10}')]).decode()
    assert written.count("\n") == 1
    assert '{"x": 1e999,   "y": 0.10}' in written


def test_times_are_as_clients_read_them() -> None:
    assert timestamp(0) == "1970-01-01T00:00:00.000000Z"


def test_an_answer_that_becomes_too_large_is_given_up() -> None:
    fold = Fold("chat", "m")
    fold.add([TextDelta(0, "x" * MOST_CHARS)])
    with pytest.raises(InvalidRequest, match="Ask for it with 'stream'"):
        fold.add([ReasoningDelta(0, "x")])
