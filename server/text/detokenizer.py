"""Incremental detokenization, one token at a time, never emitting half a UTF-8 character.

Holds back what later tokens may complete; the tokenizer supplies the bytes of a token. For any ids, the joined results
of the pushes and the flush equal the tokenizer's `decode`. One detokenizer serves one sequence.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence, Set
from typing import Protocol

CONTROL_MARK = "\ufdd0"
"""Encloses the name of a special token; Unicode reserves this character for internal use by programs."""

_REPLACEMENT = "\ufffd"
_MAX_HELD = 64
"""A character has at most four bytes: this many tokens without one are noise, and the cost of waiting is quadratic."""


class Detokenizer(Protocol):
    """The text of one sequence as it grows."""

    def push(self, token_id: int) -> str:
        """Return the text that this token completes; empty while a character is incomplete."""

    def flush(self) -> str:
        """Return the text held back, after the last token; an incomplete character becomes U+FFFD."""


class ByteDetokenizer:
    """Detokenizer for texts that are the UTF-8 of their tokens' bytes, less `strip` leading spaces."""

    def __init__(self, bytes_of: Callable[[int], bytes], strip: int = 0) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = strip

    def push(self, token_id: int) -> str:
        text = self._decoder.decode(self._bytes_of(token_id))
        return self._stripped(text) if self._strip and text else text

    def flush(self) -> str:
        text = self._decoder.decode(b"", final=True)
        return self._stripped(text) if self._strip and text else text

    def _stripped(self, text: str) -> str:
        kept = strip_spaces(text, self._strip)
        self._strip = 0 if kept else self._strip - len(text)
        return kept


def strip_spaces(text: str, count: int) -> str:
    """Return `text` without its leading spaces, at most `count` of them."""
    return text[min(count, len(text) - len(text.lstrip(" "))) :]


class WindowDetokenizer:
    """Detokenizer for any tokenizer: decodes the last few tokens again, with those before them as context.

    `decode` must return text that only grows at its end as ids are added, except for a trailing U+FFFD.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], skipped: Set[int] = frozenset()) -> None:
        self._decode = decode
        self._skipped = skipped
        self._ids: list[int] = []
        self._num_read = 0  # of _ids, those with text already returned
        self._read_text = ""

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        is_open = text.endswith(_REPLACEMENT) or len(text) <= len(self._read_text)
        if is_open and len(self._ids) - self._num_read < _MAX_HELD:
            return ""
        settled = text[len(self._read_text) :]
        del self._ids[: self._num_read]
        self._num_read = len(self._ids)
        self._read_text = self._decode(self._ids)
        return settled

    def flush(self) -> str:
        text = self._decode(self._ids)[len(self._read_text) :]
        self._num_read, self._read_text = 0, ""
        self._ids.clear()
        return text


class MarkingDetokenizer:
    """Writes the names of special tokens into another detokenizer's text, each between two `CONTROL_MARK`s."""

    def __init__(self, plain: Detokenizer, special: Set[int], name_of: Callable[[int], str]) -> None:
        self._plain, self._special, self._name_of = plain, special, name_of

    def push(self, token_id: int) -> str:
        if token_id not in self._special:
            return self._plain.push(token_id)
        return f"{self._plain.flush()}{CONTROL_MARK}{self._name_of(token_id)}{CONTROL_MARK}"

    def flush(self) -> str:
        return self._plain.flush()
