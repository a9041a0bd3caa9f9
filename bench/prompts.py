"""Prompts of an exact number of tokens, all different. Uses the tokenizer's file, not the model."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path

_SPACED_WORD = re.compile("[\u0120\u2581]([a-z]{2,12})")
"""A piece that begins with a space, as byte-level BPE or SentencePiece spells it."""


class Prompts:
    """Text of random words, each of which is one token with the space before it.

    Every prompt differs from all earlier ones, so that no server answers it from its cache.
    """

    def __init__(self, words: Iterable[str], seed: int = 0) -> None:
        self._words = sorted(words)
        if not self._words:
            raise ValueError("the tokenizer has no piece that is a whole word")
        self._random = random.Random(seed)

    def make(self, num_tokens: int) -> str:
        """Return a prompt of `num_tokens` words, which are as many tokens, apart from those a tokenizer prepends."""
        return "".join(f" {word}" for word in self._random.choices(self._words, k=num_tokens))


def whole_words(pieces: Iterable[str], count: Callable[[str], int]) -> list[str]:
    """Return the words among `pieces` that are one token; `count` returns the number of tokens of a text."""
    matches = (_SPACED_WORD.fullmatch(piece) for piece in pieces)
    return [match[1] for match in matches if match and count(f" {match[1]}") == 1]


def open_prompts(model: Path, seed: int = 0) -> Prompts:
    """Return prompts for the tokenizer in the folder `model`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return Prompts(whole_words(tokenizer.get_vocab(), count), seed)
