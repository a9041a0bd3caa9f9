"""Bounded encoding: a text that is far too long is recognized by its beginning.

Encoding uses hundreds of bytes of memory per token, and takes a second for a million characters.
"""

from __future__ import annotations

from server.text.tokenizer import Tokenizer

_CHARS_PER_TOKEN = 4
_LEAST_CHARS = 20_000
_SLACK = 64
"""Tokens that a prefix encoded alone may have beyond those of the same characters within the whole text."""
_PIECE_CHARS = 100_000


class TooLong(Exception):
    """A text exceeds its token limit: `num_tokens` were found before its end."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__(f"more than {num_tokens} tokens")
        self.num_tokens = num_tokens


def encode_up_to(tokenizer: Tokenizer, text: str, most: int, *, add_special_tokens: bool) -> list[int]:
    """Return the text's tokens, possibly a few more than `most`. Raises TooLong if the text is certainly too long.

    Tries prefixes of doubling length, so that at most about `2 * most` tokens are encoded in vain.
    """
    num_chars = _CHARS_PER_TOKEN * most + _LEAST_CHARS
    while num_chars < len(text):
        num_tokens = len(tokenizer.encode(text[:num_chars], add_special_tokens=add_special_tokens))
        if num_tokens > most + _SLACK:
            raise TooLong(num_tokens)
        num_chars *= 2
    return tokenizer.encode(text, add_special_tokens=add_special_tokens)


def count_tokens(tokenizer: Tokenizer, text: str) -> int:
    """Return a text's token count, exact but for a token or two where the pieces it is counted in meet."""
    pieces = (text[start : start + _PIECE_CHARS] for start in range(0, len(text), _PIECE_CHARS))
    return sum(len(tokenizer.encode(piece, add_special_tokens=False)) for piece in pieces)
