"""Lengths: how many tokens each row of the batch holds; shared by the caches of all layers.

Rows are right-padded: row r holds its tokens in columns [0, length r), so that a row can join, grow and
leave without moving another row's columns. Lengths are known to the host; nothing here asks the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx

from mlx_backend.kv_cache.allocation import EAGER_BYTES


class Lengths:
    """Tokens held by each row before the current step, and what follows from them: offsets and masks."""

    values: list[int]

    def __init__(self) -> None:
        self._cached: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self.values)

    @property
    def longest(self) -> int:
        return max(self.values, default=0)

    @property
    def is_uniform(self) -> bool:
        return min(self.values) == max(self.values)

    @property
    def offset(self) -> int | mx.array:
        """Position of the step's token: an int where all rows agree, else int32 [rows]."""
        return self.values[0] if self.is_uniform else self.array

    @property
    def array(self) -> mx.array:
        """int32 [rows]."""
        if "array" not in self._cached:
            self._cached["array"] = mx.array(self.values, dtype=mx.int32)
        return self._cached["array"]

    @property
    def row_indices(self) -> mx.array:
        """int32 [rows]: 0, 1, 2, …"""
        if "rows" not in self._cached:
            self._cached["rows"] = mx.arange(len(self.values), dtype=mx.int32)
        return self._cached["rows"]

    def columns(self, width: int | None) -> mx.array:
        """int32 [rows]: the column that each row's new token goes to, in a ring of `width` columns if given."""
        if width is None:
            return self.array
        key = ("columns", width)
        if key not in self._cached:
            self._cached[key] = self.array % width
        return self._cached[key]

    def mask(self, width: int | None, window: int | None) -> mx.array | None:
        """Mask of the columns that a row's new token attends to: bool [rows, 1, 1, columns]; None: all of them.

        `width`: of the ring, None for plain columns. `window`: attend to so many positions at most, the
        token's own included; None: no bound.
        """
        if width is not None and (window is None or window >= width):
            window = None  # the ring holds no more than that
        if self.is_uniform and (window is None or self.longest < window):
            return None
        key = ("mask", width, window)
        if key not in self._cached:
            self._cached[key] = self._build_mask(width, window)
        return self._cached[key]

    def _build_mask(self, width: int | None, window: int | None) -> mx.array:
        last = self.array[:, None]
        num_columns = self.longest + 1 if width is None else min(self.longest + 1, width)
        position = mx.arange(num_columns, dtype=mx.int32)[None]
        if width is not None:
            # column c of the ring holds the newest position p <= last with p % width == c
            position = last - (last - position) % width
        mask = (position >= 0) & (position <= last)
        if window is not None:
            mask = mask & (position > last - window)
        return mask[:, None, None, :]


class RowLengths(Lengths):
    """The lengths of the rows of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.values = []
        self._segments: list[SegmentLengths] = []

    def segment(self, first: int, end: int | None) -> SegmentLengths:
        """The number of each row's tokens at positions in [first, end)."""
        segment = SegmentLengths(self, first, end)
        self._segments.append(segment)
        return segment

    def join(self, length: int) -> None:
        self._change([*self.values, length])

    def leave(self, row: int) -> None:
        """The last row takes the place of the one that leaves."""
        self.values[row] = self.values[-1]
        self._change(self.values[:-1])

    def advance(self) -> None:
        """The step is done: every row holds one token more."""
        self._change([length + 1 for length in self.values])

    def _change(self, values: list[int]) -> None:
        self.values = values
        self._cached.clear()
        for segment in self._segments:
            segment.follow()


class SegmentLengths(Lengths):
    """Lengths within a segment of positions; they follow those of the whole rows."""

    def __init__(self, whole: Lengths, first: int, end: int | None) -> None:
        super().__init__()
        self._whole, self._first, self._end = whole, first, end
        self.follow()

    def follow(self) -> None:
        """The whole rows' lengths have changed."""
        self.values = [self.of(length) for length in self._whole.values]
        self._cached.clear()

    def of(self, length: int) -> int:
        """The number of tokens, of `length`, that lie in the segment."""
        return max(0, min(length, self._end or length) - self._first)


class Rows(Protocol):
    """The cache of one layer for all rows: what the runner calls, beside what the model calls."""

    def reserve(self, num_rows: int, num_tokens: int) -> None:
        """Make room, in one move, for so many rows of at most so many tokens."""

    def join(self, single: Any, length: int) -> None:
        """Append a row: the content of an mlx-lm cache that holds `length` tokens (None: no token)."""

    def copy_last(self) -> list[mx.array]:
        """Copies of the last row's arrays, for `leave` to put in another's place; empty where it needs none.

        A row that is moved within one graph would copy the whole array: what reads it still holds the buffer when it
        is to be written. So the copies are evaluated first, those of all layers together.
        """

    def leave(self, row: int) -> None:
        """Drop a row; the last row takes its place. RowLengths still counts it."""

    def fit(self, num_rows: int, num_tokens: int) -> None:
        """Hold no more than so many rows of at most so many tokens can come to."""

    @property
    def nbytes(self) -> int: ...


def resize(arrays: Sequence[mx.array], num_rows: int, num_tokens: int, keep_rows: int) -> list[mx.array]:
    """Copies of [rows, heads, tokens, …] arrays in another capacity, the first `keep_rows` rows kept."""
    moved = []
    for array in arrays:
        _, heads, tokens, dim = array.shape
        kept = min(tokens, num_tokens)
        if (keep_rows, kept) == (num_rows, num_tokens):  # assigned whole, it would be a slice of the old buffer
            moved.append(mx.take(array[:, :, :kept], mx.arange(keep_rows), axis=0))
            continue
        new = mx.zeros((num_rows, heads, num_tokens, dim), dtype=array.dtype)
        new[:keep_rows, :, :kept] = array[:keep_rows, :, :kept]
        moved.append(new)
    if sum(array.nbytes for array in moved) > EAGER_BYTES:
        mx.eval(moved)
    return moved
