"""Texts encoded no further than they are of use: what is much too long is found out by its beginning.

A tokenizer takes hundreds of bytes for each token while it is at it, and a second for a million characters.
"""

from __future__ import annotations

from server.text.tokenizer import Tokenizer

_CHARS_PER_TOKEN = 4
_LEAST_CHARS = 20_000
_SLACK = 64
"""Tokens that a beginning may have more than the same characters have within the whole."""
_PIECE_CHARS = 100_000


class TooLong(Exception):
    """A text has more tokens than it may have: `num_tokens` were found, and it goes on."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__(f"more than {num_tokens} tokens")
        self.num_tokens = num_tokens


def encode_up_to(tokenizer: Tokenizer, text: str, most: int, *, add_special_tokens: bool) -> list[int]:
    """The text's tokens, which may be some more than `most`. Raises TooLong, for one that is long beyond doubt.

    Longer and longer beginnings are tried, so that never more than about `2 * most` tokens are made in vain.
    """
    num_chars = _CHARS_PER_TOKEN * most + _LEAST_CHARS
    while num_chars < len(text):
        num_tokens = len(tokenizer.encode(text[:num_chars], add_special_tokens=add_special_tokens))
        if num_tokens > most + _SLACK:
            raise TooLong(num_tokens)
        num_chars *= 2
    return tokenizer.encode(text, add_special_tokens=add_special_tokens)


def count_tokens(tokenizer: Tokenizer, text: str) -> int:
    """How many tokens a text has, but for one or two where the pieces in which it is counted meet."""
    pieces = (text[start : start + _PIECE_CHARS] for start in range(0, len(text), _PIECE_CHARS))
    return sum(len(tokenizer.encode(piece, add_special_tokens=False)) for piece in pieces)
