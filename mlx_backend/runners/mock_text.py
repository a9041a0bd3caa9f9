"""Text of the mock runner: words by the prompt, or text from the request, as far as a grammar allows it."""

from __future__ import annotations

import functools
import random
import zlib
from collections.abc import Iterator

from mlx_backend.core.row import Row
from mlx_backend.core.step import NewRow

WORDS = (
    *("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "and", "again"),
    *("naïve", "café", "waiters", "juggle", "你好", "🙂", "emoji"),
)
_CLOSES, _PUTS_OFF = frozenset(b'"]}'), frozenset(b" \n0123456789,")
"""Bytes that bring the end of an answer in JSON closer, and bytes that could continue it endlessly."""
_MOST_RANDOM_TOKENS = 100


class _GivenText:
    """Tokens that came with a request; they repeat if more are needed."""

    def __init__(self, ids: tuple[int, ...]) -> None:
        self._ids = ids or (0,)
        self.length = len(ids)

    def token(self, position: int) -> int:
        return self._ids[position % len(self._ids)]


class _Text:
    """Endless words, as bytes; the mock stops by itself after `length` bytes."""

    def __init__(self, source: random.Random) -> None:
        self._words = _words(source)
        self._bytes = bytearray()
        for _ in range(source.randint(8, 40)):
            self._bytes += next(self._words)
        self.length = len(self._bytes)

    def token(self, position: int) -> int:
        while position >= len(self._bytes):
            self._bytes += next(self._words)
        return self._bytes[position]


def _words(source: random.Random) -> Iterator[bytes]:
    yield source.choice(WORDS).encode()
    while True:
        yield b" " + source.choice(WORDS).encode()


def text_of(new: NewRow) -> _Text | _GivenText:
    """Return the text that a row writes, ignoring any grammar."""
    if new.mock is not None:
        return _GivenText(new.mock.outputs[new.ordinal])
    return _continuation(new.prompt_ids, new.ordinal, new.sampling.seed if _is_random(new) else None)


def own_token(row: Row, position: int) -> int:
    """Return the token that a row writes there, or its end, ignoring any grammar."""
    text = text_of(row.new)
    has_ended = position >= text.length and bool(row.stop_ids) and position >= row.new.min_tokens
    return min(row.stop_ids) if has_ended else text.token(position)


@functools.lru_cache(maxsize=1024)
def _continuation(prompt_ids: tuple[int, ...], ordinal: int, seed: int | None) -> _Text:
    key = zlib.crc32(repr((prompt_ids, ordinal, seed)).encode())
    return _Text(random.Random(key))


def choose(bits: bytes, wanted: int, row: Row, vocab_size: int) -> int:
    """Choose a token that a grammar allows: the end, else one that brings it closer, else preferably `wanted`.

    Text from a script comes first, as far as it is allowed, and so does `wanted` if the end is allowed, too. With a
    temperature, occasionally any of the allowed tokens, as long as the answer is not long yet.
    """
    given, stop_ids = row.new.mock, row.stop_ids
    may_end = any(_is_allowed(bits, token_id) for token_id in stop_ids)
    if (given is not None or may_end) and _is_allowed(bits, wanted):
        return wanted
    closes, puts_off = (_CLOSES, _PUTS_OFF) if given is None else (given.closing_ids, given.filling_ids)
    allowed = [token_id for token_id in range(vocab_size) if _is_allowed(bits, token_id)]
    if given is None and _is_random(row.new) and allowed and row.num_started_tokens < _MOST_RANDOM_TOKENS:
        seed, place = row.sampling.seed, row.num_started_tokens
        drawn = zlib.crc32(repr((row.prompt_ids, row.new.ordinal, seed, place)).encode())
        if drawn % 3 == 0:
            return allowed[drawn // 3 % len(allowed)]
    return min(
        allowed or [wanted],
        key=lambda token_id: (
            token_id not in stop_ids,
            token_id not in closes,
            token_id in puts_off,
            token_id != wanted,
            token_id,
        ),
    )


def _is_allowed(bits: bytes, token_id: int) -> bool:
    return bool(bits[token_id // 8] >> token_id % 8 & 1)


def _is_random(new: NewRow) -> bool:
    return new.sampling.temperature > 0
