"""Character offsets of a text's tokens, computed from the bytes of each token.

The two need not agree byte by byte: a tokenizer adds special tokens and a leading space, and may normalize.
"""

from __future__ import annotations

from collections.abc import Iterable

_SLACK = 4
"""Bytes by which a token that is not found may differ from its text, beyond twice its length."""


def token_offsets(text: str, pieces: Iterable[bytes]) -> list[int]:
    """Return the character of `text` at which each token begins; tokens of one character share its position.

    A token that is not found takes no characters; the search for those after it reaches a little further.
    """
    data = text.encode()
    places = [place for place, character in enumerate(text) for _ in character.encode()]
    places.append(len(text))
    offsets, at, slack = [], 0, 0
    for piece in pieces:
        start = _find(data, piece, at, slack)
        offsets.append(places[at if start is None else start[0]])
        if start is None:
            slack += 2 * len(piece) + _SLACK
        else:
            at, slack = start[1], 0
    return offsets


def _find(data: bytes, piece: bytes, at: int, slack: int) -> tuple[int, int] | None:
    """Return (start, end) of the piece: at `at`, there without its leading spaces, or within `slack` after it."""
    bare = piece.lstrip(b" ")
    for form in (piece, bare):
        if data.startswith(form, at):
            return at, at + len(form)
    found = data.find(piece, at, at + slack + len(piece)) if slack else -1
    return None if found < 0 else (found, found + len(piece))
