"""Bad words: sequences of tokens whose last is not drawn where the output ends in those before it.

As vLLM means them: of the output alone, and by tokens. The host knows a token one step late, so the newest tokens of a
row are kept on the device, and a step is one comparison of all words with them. Only rows that asked are held.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_backend.api.interface import SamplingParams
from mlx_backend.core.row import Row
from mlx_backend.sampling.continued import Continued

_NEVER = -float("inf")
_ANY = -1
"""In a word's place before its first token: whatever came there."""
_NONE = -2
"""In place of an output that has not come yet: equal to no token."""


def has_bad_words(params: SamplingParams) -> bool:
    return bool(params.bad_words)


class BadWords:
    """The newest outputs [asking rows, width] of some rows of a batch, the last in the last column."""

    def __init__(self, rows: Sequence[Row], previous: BadWords | Continued[mx.array] | None) -> None:
        """Rows that `previous` knows keep their outputs, some of which the host has not read yet."""
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
        """As many of the row's newest outputs as its words need, or more: int32."""
        return self._newest[self._places[row]]

    def state_after(self, row: Row, token_ids: Sequence[int]) -> mx.array:
        """The state of a row that puts out these tokens next."""
        return mx.concatenate([self.state_of(row), mx.array(token_ids, dtype=mx.int32)])

    def apply(self, logits: mx.array) -> mx.array:
        """-inf for what would end a word, but where nothing else is left. logits: float32 [batch rows, vocab]."""
        newest = self._newest[self._owners]
        is_match = mx.all((self._before == newest) | (self._before == _ANY), axis=-1)
        rows = self._batch_rows[self._owners]
        barred = logits.at[rows, self._lasts].add(mx.where(is_match, _NEVER, 0.0))
        return mx.where(mx.max(barred, axis=-1, keepdims=True) > _NEVER, barred, logits)

    def append(self, tokens: mx.array) -> None:
        """Take the step's tokens, int [batch rows]."""
        new = tokens[self._batch_rows].astype(mx.int32)[:, None]
        self._newest = mx.concatenate([self._newest[:, 1:], new], axis=-1)

    @property
    def state(self) -> mx.array:
        """To be evaluated with the step, so that steps do not pile up in the graph."""
        return self._newest


def _padded(ids: Sequence[int], size: int, filler: int) -> list[int]:
    return [*[filler] * (size - len(ids)), *ids]


def _widened(tokens: mx.array, size: int) -> mx.array:
    """The last `size` of `tokens`, filled up on the left with what is no token."""
    return mx.pad(tokens[-size:], (max(size - tokens.shape[0], 0), 0), constant_values=mx.array(_NONE, tokens.dtype))
