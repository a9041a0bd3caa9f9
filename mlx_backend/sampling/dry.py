"""DRY ("don't repeat yourself", by p-e-w, text-generation-webui pull request 5677): penalties for repeated sequences.

If the newest tokens have occurred before, the token that followed them then is penalized, by `multiplier * base **
(length - allowed_length)` for a repeated sequence of at least `allowed_length` tokens. No sequence crosses a breaker.
As in the original, only the newest `dry_range` tokens of prompt and output are searched, and a sequence counts as
LONGEST tokens at most.

The host receives a token one step late, so the tokens of a row are kept on the device. So is, for each place in them,
the number of tokens up to that place that equal the newest ones: with one more token, the length at a place is one more
than at the place before if it holds that token, and 0 if not. A step is one comparison per place, and nothing grows
with the output. Only rows with DRY are held.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_backend.api.interface import SamplingParams
from mlx_backend.core.row import Row
from mlx_backend.sampling.continued import Continued

DryState = tuple[mx.array, mx.array]

LONGEST = 50
_BREAK = -1
"""Replaces a token that breaks sequences, or a missing one: equals no token."""
_MOST = 1e9
"""Upper bound of a penalty: a token this unlikely is never drawn, and infinities would not add up."""


def has_dry(params: SamplingParams) -> bool:
    return params.dry_multiplier > 0


class Dry:
    """The newest tokens [DRY rows, width] of some rows of a batch, the last in the last column."""

    def __init__(self, rows: Sequence[Row], previous: Dry | Continued[DryState] | None) -> None:
        """Rows that `previous` holds keep their tokens, some of which the host has not read yet."""
        self._places = {row: place for place, row in enumerate(row for row in rows if has_dry(row.sampling))}
        self._batch_rows = mx.array([i for i, row in enumerate(rows) if row in self._places], dtype=mx.int32)
        params = [row.sampling for row in self._places]
        self._multiplier = mx.array([p.dry_multiplier for p in params], dtype=mx.float32)[:, None]
        self._base = mx.array([p.dry_base for p in params], dtype=mx.float32)[:, None]
        self._allowed = mx.array([p.dry_allowed_length for p in params], dtype=mx.int32)[:, None]
        most = max(len(p.dry_breaker_ids) for p in params) or 1
        self._breakers = mx.array([_padded(p.dry_breaker_ids, most) for p in params], dtype=mx.int32)
        width = max(p.dry_range for p in params)
        outside = mx.array([width - p.dry_range for p in params], dtype=mx.int32)[:, None]
        self._room = mx.maximum(mx.arange(1, width, dtype=mx.int32)[None] - outside, 0)
        """[DRY rows, width - 1]: tokens of the row's range up to each place."""
        states = [
            previous.state_of(row) if previous is not None and previous.knows(row) else _read(row)
            for row in self._places
        ]
        self._tokens = mx.stack([_widened(tokens, width, _BREAK) for tokens, _ in states])
        self._lengths = mx.stack([_widened(lengths, width, 0) for _, lengths in states])

    def knows(self, row: Row) -> bool:
        return row in self._places

    def state_of(self, row: Row) -> DryState:
        """Return (the row's newest tokens, the length of the repetition up to each): int32 [dry_range] both."""
        place, size = self._places[row], row.sampling.dry_range
        return self._tokens[place, -size:], self._lengths[place, -size:]

    def state_after(self, row: Row, token_ids: Sequence[int]) -> DryState:
        """Return the state of a row after these further output tokens."""
        tokens, lengths = self.state_of(row)
        for token in token_ids:
            is_break = mx.array(token in row.sampling.dry_breaker_ids)
            tokens, lengths = _appended(tokens, lengths, mx.array([token], dtype=mx.int32), is_break)
        return tokens, lengths

    def apply(self, logits: mx.array) -> mx.array:
        """Penalize logits, float32 [batch rows, vocab]."""
        lengths, following = mx.minimum(self._lengths[:, :-1], self._room), self._tokens[:, 1:]
        is_repeated = (lengths >= self._allowed) & (following != _BREAK)
        penalty = self._multiplier * self._base ** (lengths - self._allowed).astype(mx.float32)
        penalty = mx.where(is_repeated, mx.minimum(penalty, _MOST), 0.0)
        places = self._batch_rows[:, None], mx.maximum(following, 0)
        # if a token followed several places, the longest sequence counts
        return logits.at[places].minimum(logits[places] - penalty)

    def append(self, tokens: mx.array) -> None:
        """Append the step's tokens, int [batch rows]."""
        new = tokens[self._batch_rows].astype(mx.int32)[:, None]
        is_break = mx.any(new == self._breakers, axis=-1, keepdims=True)
        self._tokens, self._lengths = _appended(self._tokens, self._lengths, new, is_break)

    @property
    def state(self) -> tuple[mx.array, mx.array]:
        """Arrays to evaluate with the step, so that steps do not pile up in the graph."""
        return self._tokens, self._lengths


def _appended(tokens: mx.array, lengths: mx.array, new: mx.array, is_break: mx.array) -> DryState:
    """Return the state after appending `new` tokens [..., 1]."""
    tokens = mx.concatenate([tokens[..., 1:], mx.where(is_break, _BREAK, new)], axis=-1)
    return tokens, mx.where(tokens == new, mx.minimum(lengths + 1, LONGEST), 0)


def _read(row: Row) -> DryState:
    """Return the state as `Dry.state_of` does, from the tokens on the host."""
    params = row.sampling
    size, breakers = params.dry_range, frozenset(params.dry_breaker_ids)
    newest = [*row.prompt_ids[-size:], *row.output_ids[-size:]][-size:]
    tokens = mx.array([_BREAK if token in breakers else token for token in newest], dtype=mx.int32)
    tokens = _widened(tokens, size, _BREAK)
    back = mx.arange(LONGEST)
    ends = tokens[mx.maximum(size - 1 - back, 0)]
    places = mx.arange(size)[:, None] - back
    is_same = (tokens[mx.maximum(places, 0)] == ends) & (places >= 0) & (ends != _BREAK)
    return tokens, mx.sum(mx.cumprod(is_same.astype(mx.int32), axis=1), axis=1)


def _widened(values: mx.array, size: int, filler: int) -> mx.array:
    """Return the last `size` of `values`, padded on the left."""
    return mx.pad(values[-size:], (max(size - values.shape[0], 0), 0), constant_values=mx.array(filler, values.dtype))


def _padded(ids: Sequence[int], size: int) -> list[int]:
    return [*ids, *[_BREAK] * (size - len(ids))]
