"""The pipeline of one choice against an oracle that sees the whole answer at once."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlx_backend.api.interface import FinishReason, TokenEvent, TokenLogprobs
from server.text.events import Finished, OutputEvent, ReasoningDelta, TextDelta, TokenText, ToolCallDelta
from server.text.parsers.chat import ChatParser
from server.text.parsers.parts import Part, Start
from server.text.pipeline import ChoicePipeline
from server.text.tokenizer import ByteTokenizer
from tests.server.text.calls.test_splitting import TOOLS
from tests.server.text.parsers.test_chat import CALL, FORMAT
from tests.server.text.test_stop import first_stop

_TOKENIZER = ByteTokenizer()
_EOS = ByteTokenizer.EOS_ID


def events(ids: list[int], reason: FinishReason | None = "length") -> list[TokenEvent]:
    """One event per id, the i-th with the log-probability -i; the last one finishes."""
    last = len(ids) - 1
    return [
        TokenEvent(0, token, TokenLogprobs(-float(i), ((token, -float(i)),)), reason if i == last else None)
        for i, token in enumerate(ids)
    ]


def run(pipeline: ChoicePipeline, stream: list[TokenEvent]) -> list[OutputEvent]:
    return [out for event in stream for out in pipeline.feed(event)]


def text_of(outputs: list[OutputEvent]) -> str:
    return "".join(out.text for out in outputs if isinstance(out, TextDelta))


def tokens_of(outputs: list[OutputEvent]) -> list[TokenText]:
    return [token for out in outputs if isinstance(out, TextDelta) for token in out.tokens]


def _whole(ids: list[int]) -> str:
    detokenizer = _TOKENIZER.detokenizer()
    return "".join(map(detokenizer.push, ids)) + detokenizer.flush()


def expected_of(
    ids: list[int], ends_with_eos: bool, stops: tuple[str, ...]
) -> tuple[str, FinishReason, int, list[int]]:
    """(text, reason, tokens counted, positions of the tokens released), from the answer as a whole."""
    shown = ids[:-1] if ends_with_eos else ids
    detokenizer = _TOKENIZER.detokenizer()
    texts = [detokenizer.push(token) for token in shown]
    tail = detokenizer.flush()
    if ends_with_eos:
        texts.append(tail)
    else:
        texts[-1] += tail
    whole = "".join(texts)
    found = first_stop(whole, stops)
    if found is None:
        return whole, "stop" if ends_with_eos else "length", len(ids), list(range(len(shown)))
    starts, ends = [], []
    for position in range(len(texts)):
        starts.append(len("".join(texts[:position])))
        ends.append(len("".join(texts[: position + 1])))
    counted = next(position for position, end in enumerate(ends) if end >= found[1]) + 1
    # A token without text of its own begins where the next text begins, which is where it stands already.
    released = [position for position in range(min(counted, len(shown))) if starts[position] < found[0]]
    return whole[: found[0]], "stop", counted, released


_BYTES = st.sampled_from([*"ab.中é".encode(), 0xFF, 256, 257])
_STOPS = st.lists(st.text("ab.中\ufffd", min_size=1, max_size=4), max_size=3).map(tuple)


@given(ids=st.lists(_BYTES, min_size=1, max_size=30), ends_with_eos=st.booleans(), stops=_STOPS)
@example(ids=[*b"ab", 0xE4, 0xB8], ends_with_eos=False, stops=("\ufffd",))
@example(ids=[*b"ab", 0xE4, _EOS], ends_with_eos=True, stops=("\ufffd",))
@example(ids=[257, *b"aab", *"中".encode()], ends_with_eos=False, stops=("ab中",))
def test_any_answer_and_any_stop_give_what_the_whole_gives(ids, ends_with_eos, stops):
    pipeline = ChoicePipeline(3, _TOKENIZER, stops, wants_logprobs=True)
    outputs = run(pipeline, events(ids, "stop" if ends_with_eos else "length"))
    text, reason, counted, released = expected_of(ids, ends_with_eos, stops)
    assert text_of(outputs) == text
    (end,) = [out for out in outputs if isinstance(out, Finished)]
    span = first_stop(_whole(ids[:-1] if ends_with_eos else ids), stops)
    assert replace(end, end_token=None, stop=None) == Finished(3, reason, counted)
    assert (end.stop in stops) == (span is not None)
    ended_itself = ends_with_eos and first_stop(_whole(ids[:-1]), stops) is None
    assert (end.end_token is not None) == ended_itself
    assert outputs[-1] is end
    assert [token.logprob for token in tokens_of(outputs)] == [-float(position) for position in released]
    assert pipeline.done
    assert pipeline.num_output_tokens == counted


@given(ids=st.lists(_BYTES, min_size=1, max_size=30), stops=_STOPS)
def test_log_probabilities_change_no_text(ids, stops):
    with_tokens = run(ChoicePipeline(0, _TOKENIZER, stops, wants_logprobs=True), events(ids))
    without = run(ChoicePipeline(0, _TOKENIZER, stops, wants_logprobs=False), events(ids))
    assert text_of(with_tokens) == text_of(without)
    assert tokens_of(without) == []
    assert with_tokens[-1] == without[-1]


@given(ids=st.lists(_BYTES, min_size=1, max_size=30), stops=_STOPS, wants=st.booleans())
def test_tokens_come_with_the_end_of_their_text_and_no_delta_is_empty(ids, stops, wants):
    pipeline = ChoicePipeline(0, _TOKENIZER, stops, wants_logprobs=wants)
    for event in events(ids):
        outputs = pipeline.feed(event)
        for out in outputs:
            assert not isinstance(out, TextDelta) or out.text or out.tokens
        if not pipeline.done:
            assert all(isinstance(out, TextDelta) and out.text for out in outputs)


def test_text_goes_out_as_it_comes():
    pipeline = ChoicePipeline(1, _TOKENIZER, (), wants_logprobs=False)
    outputs = [pipeline.feed(event) for event in events(list(b"ab"))]
    assert outputs == [[TextDelta(1, "a")], [TextDelta(1, "b"), Finished(1, "length", 2)]]


def test_a_characters_tokens_go_out_together():
    pipeline = ChoicePipeline(0, _TOKENIZER, (), wants_logprobs=True)
    first, second, third, last = (pipeline.feed(event) for event in events([*"中".encode(), 0x61]))
    assert first == second == []
    (delta,) = third
    assert isinstance(delta, TextDelta)
    assert delta.text == "中"
    assert [token.raw for token in delta.tokens] == [b"\xe4", b"\xb8", b"\xad"]
    assert [token.text for token in delta.tokens] == ["\ufffd"] * 3
    assert text_of(last) == "a"


def test_the_alternatives_of_a_token_are_texts_too():
    pipeline = ChoicePipeline(0, _TOKENIZER, (), wants_logprobs=True)
    (delta,) = pipeline.feed(TokenEvent(0, 97, TokenLogprobs(-0.5, ((97, -0.5), (_EOS, -1.0)))))
    alternatives = (TokenText(97, "a", b"a", -0.5), TokenText(_EOS, "<eos>", b"<eos>", -1.0))
    assert delta == TextDelta(0, "a", (TokenText(97, "a", b"a", -0.5, alternatives),))


def test_an_end_token_counts_and_says_nothing():
    pipeline = ChoicePipeline(0, _TOKENIZER, (), wants_logprobs=True)
    outputs = run(pipeline, events([0x61, _EOS], "stop"))
    assert text_of(outputs) == "a"
    assert [token.token_id for token in tokens_of(outputs)] == [0x61]
    likeliest = (TokenText(_EOS, "<eos>", b"<eos>", -1.0),)
    assert outputs[-1] == Finished(0, "stop", 2, end_token=TokenText(_EOS, "<eos>", b"<eos>", -1.0, likeliest))


def test_a_text_token_as_end_token_says_nothing_either():
    pipeline = ChoicePipeline(0, _TOKENIZER, (), wants_logprobs=False)
    assert run(pipeline, events(list(b"ab"), "stop")) == [TextDelta(0, "a"), Finished(0, "stop", 2)]


def test_ignored_end_tokens_go_out_without_text():
    pipeline = ChoicePipeline(0, _TOKENIZER, (), wants_logprobs=True)
    outputs = run(pipeline, events([_EOS, _EOS]))
    assert text_of(outputs) == ""
    assert [token.token_id for token in tokens_of(outputs)] == [_EOS, _EOS]


def test_nothing_follows_a_stop_string():
    pipeline = ChoicePipeline(0, _TOKENIZER, ("b",), wants_logprobs=False)
    outputs = run(pipeline, events(list(b"abab")))
    assert outputs == [TextDelta(0, "a"), Finished(0, "stop", 2, stop="b")]
    assert pipeline.done
    assert pipeline.num_output_tokens == 2


def test_held_back_text_goes_out_at_the_end():
    pipeline = ChoicePipeline(0, _TOKENIZER, ("bcd",), wants_logprobs=True)
    outputs = run(pipeline, events(list(b"abc")))
    assert text_of(outputs) == "abc"
    assert [token.text for token in tokens_of(outputs)] == ["a", "b", "c"]
    assert outputs[-1] == Finished(0, "length", 3)


def test_a_token_cut_by_a_stop_string_goes_out_with_what_is_left_of_it():
    class Pairs(ByteTokenizer):
        def token_bytes(self, token_id: int) -> bytes:
            return b"xy" if token_id == 0 else super().token_bytes(token_id)

    pipeline = ChoicePipeline(0, Pairs(), ("yz",), wants_logprobs=True)
    outputs = run(pipeline, events([0, *b"z"]))
    assert text_of(outputs) == "x"
    assert [token.text for token in tokens_of(outputs)] == ["xy"]
    assert outputs[-1] == Finished(0, "stop", 2, stop="yz")


@pytest.mark.parametrize("wants", [True, False])
def test_events_without_log_probabilities_carry_no_tokens(wants):
    pipeline = ChoicePipeline(0, _TOKENIZER, (), wants_logprobs=wants)
    assert pipeline.feed(TokenEvent(0, 97)) == [TextDelta(0, "a")]


# --- parsed


def parsed(text: str, reason: FinishReason = "length", *, stop: tuple[str, ...] = (), **options: Any):
    """(the pipeline, what it gave) for a chat's answer, a token a byte."""
    pipeline = ChoicePipeline(0, _TOKENIZER, stop, wants_logprobs=True, parser=ChatParser(FORMAT, TOOLS, **options))
    ids = [*text.encode(), _EOS] if reason == "stop" else [*text.encode()]
    return pipeline, run(pipeline, events(ids, reason))


def joined(outputs: list[OutputEvent], kind: type[TextDelta] | type[ReasoningDelta]) -> tuple[str, str]:
    """(the text of the deltas of a kind, the text of their tokens)."""
    deltas: list[Any] = [out for out in outputs if isinstance(out, kind)]
    tokens = [token.text for out in deltas for token in out.tokens]
    return "".join(out.text for out in deltas), "".join(tokens)


def test_tokens_go_out_with_what_they_are_of():
    thought, content = "<think>\nhm\n</think>\n\n", "I ask."
    pipeline, outputs = parsed(f"{thought}{content}\n{CALL}", "stop")
    assert joined(outputs, ReasoningDelta) == ("hm", thought)
    assert joined(outputs, TextDelta) == (content, content)
    (call,) = [out for out in outputs if isinstance(out, ToolCallDelta)]
    assert (call.index, call.call_index, call.name, call.arguments) == (0, 0, "f", '{"a": 1}')
    end = outputs[-1]
    assert isinstance(end, Finished)
    assert replace(end, end_token=None) == Finished(0, "tool_calls", pipeline.num_output_tokens, len(thought))


_WORDS = ("<think>", "</think>", CALL, "<tool>", "</t", "<", " ", "\n", "a", "bc")


@example(words=[" ", "<think>"], stops=("k>",), is_open=False, ends_with_eos=False)
@given(
    words=st.lists(st.sampled_from(_WORDS), min_size=1, max_size=12),
    stops=st.lists(st.sampled_from(["a<", "c", "\n\n", "k>", "{", "tool"]), max_size=2).map(tuple),
    is_open=st.booleans(),
    ends_with_eos=st.booleans(),
)
def test_a_stop_string_ends_the_content_and_nothing_else(words, stops, is_open, ends_with_eos):
    text = "".join(words)
    begins: Start = "opened" if is_open else "before"
    reason: FinishReason = "stop" if ends_with_eos else "length"
    pipeline, outputs = parsed(text, reason, stop=stops, begins=begins)
    content, tokens = joined(outputs, TextDelta)
    assert tokens.startswith(content)
    assert len(tokens) - len(content) < max(map(len, stops), default=0) or tokens == content
    whole = ChatParser(FORMAT, TOOLS, begins=begins)
    parts = [*whole.feed(text), *whole.flush(is_cut=not ends_with_eos)]
    said = up_to_stop([part for part in parts if part.size], stops)
    assert content == "".join(part.text for part in said if part.kind == "content")
    assert joined(outputs, ReasoningDelta)[0] == "".join(part.text for part in said if part.kind == "reasoning")
    finished = outputs[-1]
    assert isinstance(finished, Finished)
    assert finished.num_reasoning_tokens == len(joined(outputs, ReasoningDelta)[1])
    assert finished.num_output_tokens == pipeline.num_output_tokens


def up_to_stop(parts: list[Part], stops: tuple[str, ...]) -> list[Part]:
    """The parts up to the first stop string in a stretch of content that nothing interrupts."""
    said: list[Part] = []
    for kind, group in groupby(parts, key=lambda part: part.kind):
        stretch = list(group)
        text = "".join(part.text for part in stretch)
        found = first_stop(text, stops) if kind == "content" else None
        if found is not None:
            return [*said, Part("content", text[: found[0]], found[0])]
        said += stretch
    return said


def test_tokens_without_text_at_the_end_of_a_reasoning_are_of_the_reasoning():
    pipeline = ChoicePipeline(0, _TOKENIZER, (), wants_logprobs=True, parser=ChatParser(FORMAT))
    outputs = run(pipeline, events([*b"<think>a", _EOS, _EOS]))
    assert joined(outputs, ReasoningDelta) == ("a", "<think>a<eos><eos>")
    assert outputs[-1] == Finished(0, "length", 10, 10)


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_calls_change_the_reason_of_an_answer_that_ended_itself(reason):
    _, outputs = parsed(CALL, reason)
    assert outputs[-1].reason == ("tool_calls" if reason == "stop" else "length")


def test_the_first_call_ends_an_answer_that_may_have_one():
    pipeline, outputs = parsed(f"{CALL}{CALL} more", only_one=True)
    assert [type(out) for out in outputs] == [ToolCallDelta, Finished]
    assert outputs[-1] == Finished(0, "tool_calls", len(CALL), 0)
    assert pipeline.done


def test_calls_are_numbered():
    _, outputs = parsed(f"{CALL}\n{CALL}{CALL}")
    assert [out.call_index for out in outputs if isinstance(out, ToolCallDelta)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "stop", "content", "reasoning", "has_call"),
    [
        ("<think>hm</think>a", "</think>", "a", "hm", False),
        ("<think>hm</think>aSTOPb", "STOP", "a", "hm", False),
        ("<think>hm STOP</think>a", "STOP", "a", "hm STOP", False),
        ("<think>hm STOP</think>aSTOP", "STOP", "a", "hm STOP", False),
        (f"a {CALL}", "</tool>", "a", "", True),
        (f"a {CALL}", "name", "a", "", True),
        (f"aSTOP {CALL}", "STOP", "a", "", False),
        (f"a{CALL}b", "ab", "ab", "", True),
        ("a <think", "think", "a <", "", False),
    ],
)
def test_a_stop_string_sees_content_alone(text, stop, content, reasoning, has_call):
    _, outputs = parsed(text, "stop", stop=(stop,))
    assert joined(outputs, TextDelta)[0] == content
    assert joined(outputs, ReasoningDelta)[0] == reasoning
    assert any(isinstance(out, ToolCallDelta) for out in outputs) == has_call
    assert outputs[-1].reason == ("tool_calls" if has_call else "stop")


def test_without_a_parser_nothing_is_looked_for():
    pipeline = ChoicePipeline(0, _TOKENIZER, (), wants_logprobs=False)
    text = f"<think>a</think>{CALL}"
    outputs = run(pipeline, events(list(text.encode())))
    assert text_of(outputs) == text
    assert outputs[-1] == Finished(0, "length", len(text))


def test_a_stop_string_that_comes_too_early_is_text():
    for min_tokens, text in ((0, "a"), (2, "a"), (3, "aSTb"), (7, "aSTbSTc")):
        pipeline = ChoicePipeline(0, _TOKENIZER, ("ST",), wants_logprobs=False, min_tokens=min_tokens)
        outputs = run(pipeline, events([*b"aSTbSTc"]))
        assert text_of(outputs) == text
        assert pipeline.done


def test_a_call_that_was_cut_is_no_call():
    begun = CALL[: CALL.index("</") - 1]
    endings: list[tuple[FinishReason, bool]] = [("length", False), ("stop", True)]
    for reason, is_call in endings:
        _, outputs = parsed(begun, reason)
        assert any(isinstance(out, ToolCallDelta) for out in outputs) == is_call
        assert joined(outputs, TextDelta)[0] == ("" if is_call else begun)
