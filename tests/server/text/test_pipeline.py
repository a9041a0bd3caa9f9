"""The pipeline of one choice against an oracle that sees the whole answer at once."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlx_backend.interface import FinishReason, TokenEvent, TokenLogprobs
from server.text.events import Finished, OutputEvent, TextDelta, TokenText
from server.text.pipeline import ChoicePipeline
from server.text.tokenizer import ByteTokenizer
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
    assert [out for out in outputs if isinstance(out, Finished)] == [Finished(3, reason, counted)]
    assert isinstance(outputs[-1], Finished)
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
    assert outputs[-1] == Finished(0, "stop", 2)


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
    assert outputs == [TextDelta(0, "a"), Finished(0, "stop", 2)]
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
    assert outputs[-1] == Finished(0, "stop", 2)


@pytest.mark.parametrize("wants", [True, False])
def test_events_without_log_probabilities_carry_no_tokens(wants):
    pipeline = ChoicePipeline(0, _TOKENIZER, (), wants_logprobs=wants)
    assert pipeline.feed(TokenEvent(0, 97)) == [TextDelta(0, "a")]
