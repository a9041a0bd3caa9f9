"""Output events for tests of encoders, and how a client reads what they write."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from server.dialects.answers import ChunkEncoder
from server.dialects.fold import Fold
from server.dialects.openai_written import Head
from server.text.events import Finished, OutputEvent, TextDelta, TokenText, Usage

HEAD = Head("id-1", 1700000000, "mock")


def token(text: str, logprob: float = -0.5, *top: TokenText) -> TokenText:
    return TokenText(ord(text[0]), text, text.encode(), logprob, top)


def encode_all(encoder: ChunkEncoder, batches: Iterable[list[OutputEvent]]) -> list[dict[str, Any]]:
    """What a client makes of the stream; it must end with `[DONE]`."""
    written = b"".join(map(encoder.encode, batches)).decode()
    events = written.split("\n\n")
    assert events.pop() == ""
    assert events.pop() == "data: [DONE]"
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def folded(fold: Fold, batches: Iterable[list[OutputEvent]]) -> Any:
    """The JSON answer."""
    for batch in batches:
        fold.add(batch)
    return json.loads("".join(fold.pieces()))


_tokens = st.lists(st.builds(token, st.text(min_size=1, max_size=2), st.floats(-20, 0)), max_size=3).map(tuple)


@st.composite
def jobs(draw: st.DrawFn) -> list[list[OutputEvent]]:
    """The batches of a job with up to three choices, their deltas in any order."""
    num_choices = draw(st.integers(1, 3))
    deltas = draw(st.lists(st.builds(TextDelta, st.integers(0, num_choices - 1), st.text(), _tokens), max_size=12))
    end_tokens = st.none() | st.builds(token, st.just("<end>"), st.floats(-20, 0))
    ends = [
        Finished(index, draw(st.sampled_from(["stop", "length"])), 3, end_token=draw(end_tokens))
        for index in range(num_choices)
    ]
    events: list[OutputEvent] = [*deltas, *draw(st.permutations(ends)), Usage(5, 1, 3 * num_choices)]
    size = draw(st.integers(1, 4))
    return [events[start : start + size] for start in range(0, len(events), size)]
