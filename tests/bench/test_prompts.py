"""Prompts of an exact length."""

from __future__ import annotations

import pytest

from bench.prompts import Prompts, whole_words


def test_words_are_pieces_with_a_space_that_come_back_as_one_token() -> None:
    pieces = ["\u0120file", "\u2581node", "file", "\u0120File", "\u0120a", "\u0120fi1e", "\u0120split", "<|end|>"]
    words = whole_words(pieces, lambda text: 2 if text == " split" else 1)
    assert sorted(words) == ["file", "node"]


def test_as_many_words_as_tokens_with_a_space_before_each() -> None:
    prompt = Prompts(["file", "node"]).make(7)
    assert len(prompt.split(" ")) == 1 + 7
    assert prompt.startswith(" ")


def test_the_same_seed_gives_the_same_prompts_and_no_two_alike() -> None:
    first, second = Prompts(["b", "a"], seed=3), Prompts(["a", "b"], seed=3)
    made = [first.make(64) for _ in range(4)]
    assert made == [second.make(64) for _ in range(4)]
    assert len(set(made)) == 4


def test_a_tokenizer_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="whole word"):
        Prompts([])
