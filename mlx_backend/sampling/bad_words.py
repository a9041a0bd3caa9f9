"""Bad words: token sequences; the last token of one is not drawn if the output ends in the ones before it.

As in vLLM, they apply to the output alone, token by token. The host receives a token one step late, so the newest
tokens of a row are kept on the device, and a step is one comparison of all words with them. Only rows with bad words
are held.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_backend.api.interface import SamplingParams
from mlx_backend.core.row import Row
from mlx_backend.sampling.continued import Continued

_NEVER = -float("inf")
_ANY = -1
"""Fills a word's places before its first token: matches any token."""
_NONE = -2
"""Fills the places of missing output: equals no token."""


def has_bad_words(params: SamplingParams) -> bool:
    return bool(params.bad_words)


class BadWords:
    """The newest outputs [held rows, width] of some rows of a batch, the last in the last column."""

    def __init__(self, rows: Sequence[Row], previous: BadWords | Continued[mx.array] | None) -> None:
        """Rows that `previous` holds keep their outputs, some of which the host has not read yet."""
        self._places = {row: i for i, row in enumerate(row for row in rows if has_bad_words(row.sampling))}
        self._batch_rows = mx.array([i for i, row in enumerate(rows) if row in self._places], dtype=mx.int32)
        words = [(place, word) for row, place in self._places.items() for word in row.sampling.bad_words]
        self._owners = mx.array([place for place, _ in words], dtype=mx.int32)
        self._lasts = mx.array([word[-1] for _, word in words], dtype=mx.int32)
        width = max(1, max(len(word) for _, word in words) - 1)
        self._before = mx.array([_padded(word[:-1], width, _ANY) for _, word in words], dtype=mx.int32)
        newest = [
            previous.state_of(row) if previous is not None and previous.knows(row) else mx.array(row.output_ids)
            for row in self._places
        ]
        self._newest = mx.stack([_widened(tokens.astype(mx.int32), width) for tokens in newest])

    def knows(self, row: Row) -> bool:
        return row in self._places

    def state_of(self, row: Row) -> mx.array:
        """Return at least as many of the row's newest outputs as its words need: int32."""
        return self._newest[self._places[row]]

    def state_after(self, row: Row, token_ids: Sequence[int]) -> mx.array:
        """Return the state of a row after these further output tokens."""
        return mx.concatenate([self.state_of(row), mx.array(token_ids, dtype=mx.int32)])

    def apply(self, logits: mx.array) -> mx.array:
        """Set tokens that end a word to -inf, unless nothing else is left. logits: float32 [batch rows, vocab]."""
        newest = self._newest[self._owners]
        is_match = mx.all((self._before == newest) | (self._before == _ANY), axis=-1)
        rows = self._batch_rows[self._owners]
        barred = logits.at[rows, self._lasts].add(mx.where(is_match, _NEVER, 0.0))
        return mx.where(mx.max(barred, axis=-1, keepdims=True) > _NEVER, barred, logits)

    def append(self, tokens: mx.array) -> None:
        """Append the step's tokens, int [batch rows]."""
        new = tokens[self._batch_rows].astype(mx.int32)[:, None]
        self._newest = mx.concatenate([self._newest[:, 1:], new], axis=-1)

    @property
    def state(self) -> mx.array:
        """Array to evaluate with the step, so that steps do not pile up in the graph."""
        return self._newest


def _padded(ids: Sequence[int], size: int, filler: int) -> list[int]:
    return [*[filler] * (size - len(ids)), *ids]


def _widened(tokens: mx.array, size: int) -> mx.array:
    """Return the last `size` of `tokens`, padded on the left with a value that is no token."""
    return mx.pad(tokens[-size:], (max(size - tokens.shape[0], 0), 0), constant_values=mx.array(_NONE, tokens.dtype))
