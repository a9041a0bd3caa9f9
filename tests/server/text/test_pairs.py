"""Prompts of pairs: in the words of the model, and cut where they are to be."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.pairs import INSTRUCTION, PairEncoder, QueryTooLong, cut
from server.text.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()
CONTEXT = 1_000_000
WORDS = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: {}\n<Query>: {}\n<Document>: {}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
NUM_WORDS = len(WORDS.format(INSTRUCTION, "", "").encode())


def text_of(ids: tuple[int, ...]) -> str:
    return TOKENIZER.decode(ids)


def test_the_words_are_those_of_the_model() -> None:
    pair = PairEncoder(TOKENIZER, INSTRUCTION).encode("a query", "a document", CONTEXT)
    assert text_of(pair.ids) == WORDS.format(INSTRUCTION, "a query", "a document")
    assert pair.num_truncated_tokens == 0
    pair = PairEncoder(TOKENIZER, "Judge").encode("q", "", CONTEXT)
    assert text_of(pair.ids) == WORDS.format("Judge", "q", "")


def test_each_part_is_cut_for_itself() -> None:
    encoder = PairEncoder(TOKENIZER, INSTRUCTION, most_of_query=3, most_of_document=5)
    pair = encoder.encode("abcdef", "ghijklm", CONTEXT)
    assert text_of(pair.ids) == WORDS.format(INSTRUCTION, "abc", "ghijk")
    assert pair.num_truncated_tokens == 5


def test_the_document_gives_way_where_the_whole_is_too_long() -> None:
    encoder = PairEncoder(TOKENIZER, INSTRUCTION, most=NUM_WORDS + 10)
    pair = encoder.encode("abcdef", "ghijklm", CONTEXT)
    assert (len(pair.ids), pair.num_truncated_tokens) == (NUM_WORDS + 10, 3)
    assert "<Document>: ghij<|im_end|>" in text_of(pair.ids)
    with pytest.raises(QueryTooLong):
        encoder.encode("abcdefghijk", "", CONTEXT)
    assert len(encoder.encode("abcdefghij", "long", CONTEXT).ids) == NUM_WORDS + 10


class Halves(ByteTokenizer):
    """Two bytes a token, but one where their number is odd: where texts meet, there may be many tokens more."""

    def __init__(self) -> None:
        self.known: list[bytes] = []

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        found = text.encode()
        size = 1 + (len(found) % 2 == 0)
        pieces = [found[place : place + size] for place in range(0, len(found), size)]
        self.known += pieces
        return list(range(len(self.known) - len(pieces), len(self.known)))

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.known[each] for each in ids).decode("utf-8", "replace")


@pytest.mark.parametrize("query", ["odd", "even"])
@pytest.mark.parametrize("document", ["a document", "a long document"])
def test_tokens_that_differ_where_the_parts_meet_are_counted(query: str, document: str) -> None:
    tokenizer = Halves()
    alone = len(PairEncoder(tokenizer, INSTRUCTION).encode(query, "", CONTEXT).ids)
    for room in range(5):
        encoder = PairEncoder(tokenizer, INSTRUCTION, most=alone + room)
        assert len(encoder.encode(query, document, CONTEXT).ids) <= alone + room


@given(st.text(max_size=60) | st.text(min_size=1, max_size=3).map(lambda part: part * 2000), st.integers(0, 300))
def test_what_is_cut_is_a_beginning_and_is_counted(text: str, most: int) -> None:
    kept, num_cut = cut(TOKENIZER, text, most)
    num_tokens = len(text.encode("utf-8", "replace"))
    assert num_cut == max(0, num_tokens - most)
    assert text.startswith(kept)
    assert len(kept.encode()) <= max(most, len(text.encode()) * (not num_cut))


@given(st.text(min_size=1, max_size=40), st.text(max_size=300), st.integers(0, 200))
def test_no_prompt_is_longer_than_it_may_be(query: str, document: str, room: int) -> None:
    most = NUM_WORDS + room
    encoder = PairEncoder(TOKENIZER, INSTRUCTION, most=most)
    try:
        pair = encoder.encode(query, document, CONTEXT)
    except QueryTooLong:
        assert len(query.encode("utf-8", "replace")) > room
        return
    assert len(pair.ids) <= most
    assert (pair.num_truncated_tokens > 0) == (len((query + document).encode("utf-8", "replace")) > room)
