"""Prompts for filling a gap in a text, if the tokenizer has tokens for it.

Contains the names of these tokens by model family; their ids come from the tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.text.bounded_encoding import encode_up_to
from server.text.tokenizer import Tokenizer


class InfillUnsupported(Exception):
    """The tokenizer has no tokens for filling a gap."""


@dataclass(frozen=True, slots=True)
class _Names:
    """Names of the tokens before the text preceding the gap, before the text following it, and before the filling."""

    prefix: str
    suffix: str
    middle: str
    ends: tuple[str, ...] = ()
    """Tokens with which the model may end the filling, in addition to its end-of-sequence tokens."""


_FAMILIES = (
    _Names(
        "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", ("<|endoftext|>", "<|file_sep|>", "<|file_separator|>")
    ),
    _Names("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<|endoftext|>", "<file_sep>")),
    _Names("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ("<|endoftext|>",)),
    _Names("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", ("\u2581<EOT>",)),
    _Names("<PRE>", "<SUF>", "<MID>", ("<EOT>",)),
    _Names("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
)


@dataclass(frozen=True, slots=True)
class Infill:
    """Ids of a prompt with a gap, and the tokens that end the filling in addition to the model's own."""

    ids: tuple[int, ...]
    end_ids: frozenset[int]


def encode_infill(tokenizer: Tokenizer, prefix: str, suffix: str, most: int) -> Infill:
    """Return a prompt that makes the model fill the gap between the two texts. Raises InfillUnsupported and TooLong."""
    for names in _FAMILIES:
        marks = [_id_of(tokenizer, name) for name in (names.prefix, names.suffix, names.middle)]
        if None not in marks:
            break
    else:
        raise InfillUnsupported("this model's tokenizer has no tokens for filling a gap in a text")
    before, after, middle = (mark for mark in marks if mark is not None)
    ids = [
        *tokenizer.encode("", add_special_tokens=True),
        before,
        *encode_up_to(tokenizer, prefix, most, add_special_tokens=False),
        after,
        *encode_up_to(tokenizer, suffix, most, add_special_tokens=False),
        middle,
    ]
    ends = (_id_of(tokenizer, name) for name in names.ends)
    return Infill(tuple(ids), frozenset(end for end in ends if end is not None))


def _id_of(tokenizer: Tokenizer, name: str) -> int | None:
    """Return the token with this name; None if the name is encoded as several tokens, or as another."""
    ids = tokenizer.encode(name, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and _bare(tokenizer.token_text(ids[0])) == _bare(name) else None


def _bare(name: str) -> str:
    return name.replace("\u2581", " ").strip()
