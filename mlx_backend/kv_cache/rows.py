"""Lengths: the number of tokens in each row of the batch; shared by the caches of all layers.

Rows are right-padded: row r holds its tokens in columns [0, length r), so that a row can join, grow and leave without
moving another row's columns. The host holds the lengths; nothing here reads from the device.

A step gives each row one token or, if it verifies drafts, a separate number per row (`counts`). The columns of refused
drafts lie past the row's length: nothing attends to them, and the next tokens overwrite them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx

from mlx_backend.kv_cache.allocation import EAGER_BYTES


class Lengths:
    """Tokens held by each row before the current step, and the offsets and masks derived from them."""

    values: list[int]
    counts: list[int] | None = None
    """Tokens that the step gives each row; None: one."""
    most_tokens: int = 1
    """Most tokens of any row, for which masks are made."""

    def __init__(self) -> None:
        self._cached: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self.values)

    @property
    def longest(self) -> int:
        return max(self.values, default=0)

    @property
    def longest_after(self) -> int:
        """Columns in use once the step's tokens are written."""
        return self.longest + 1 if self.counts is None else max(self._ends)

    @property
    def _ends(self) -> list[int]:
        """The length of each row with all of the step's tokens."""
        return [length + count for length, count in zip(self.values, self.counts or [], strict=True)]

    @property
    def is_uniform(self) -> bool:
        return min(self.values) == max(self.values)

    @property
    def offset(self) -> int | mx.array:
        """Position of the step's token: an int if all rows have the same, else int32 [rows]."""
        return self.values[0] if self.is_uniform else self.array

    @property
    def positions(self) -> list[int]:
        """Position of each token of the step, row by row."""
        counts = self.counts or [1] * len(self.values)
        return [length + place for length, count in zip(self.values, counts, strict=True) for place in range(count)]

    @property
    def array(self) -> mx.array:
        """The lengths as int32 [rows]."""
        if "array" not in self._cached:
            self._cached["array"] = mx.array(self.values, dtype=mx.int32)
        return self._cached["array"]

    def flat_columns(self, width: int | None, num_heads: int, num_columns: int) -> mx.array:
        """Return the place of each row's new token in an array [rows, heads, columns, …], taken as an array of vectors.

        uint32 [rows x heads]. `width`: of the ring, None for plain columns. Built once per step, for all layers alike.
        """
        key = ("flat", width, num_heads, num_columns)
        if key not in self._cached:
            column = self.array if width is None else self.array % width
            head = mx.arange(len(self.values) * num_heads, dtype=mx.uint32).reshape(-1, num_heads)
            self._cached[key] = (head * num_columns + column[:, None].astype(mx.uint32)).reshape(-1)
        return self._cached[key]

    def drafted_columns(
        self, width: int | None, num_heads: int, num_columns: int
    ) -> tuple[mx.array | None, mx.array | None]:
        """Return the tokens written in a step with `counts`, and their places as in `flat_columns`.

        The first, uint32, indexes the step's tokens, row by row; None: all. The second is None if none is written.
        """
        key = ("drafted", width, num_heads, num_columns)
        if key not in self._cached:
            self._cached[key] = self._build_columns(width, num_heads, num_columns)
        found: tuple[mx.array | None, mx.array | None] = self._cached[key]
        return found

    def _build_columns(
        self, width: int | None, num_heads: int, num_columns: int
    ) -> tuple[mx.array | None, mx.array | None]:
        rows = [row for row, count in enumerate(self.counts or []) for _ in range(count)]
        places = self._token_columns()
        taken = [number for number, column in enumerate(places) if column is not None]
        if not taken:
            return None, None
        columns = [column if width is None else column % width for column in places if column is not None]
        row, column = (mx.array(each, dtype=mx.uint32)[:, None] for each in ([rows[n] for n in taken], columns))
        flat = (row * num_heads + mx.arange(num_heads, dtype=mx.uint32)) * num_columns + column
        return None if len(taken) == len(places) else mx.array(taken, dtype=mx.uint32), flat.reshape(-1)

    def _token_columns(self) -> list[int | None]:
        """Return the column of each token of the step, row by row; None for a token that is held elsewhere."""
        return list(self.positions)

    def mask(self, width: int | None, window: int | None) -> mx.array | None:
        """Return the mask of the columns that a row's new token attends to, bool [rows, 1, 1, columns]; None: all.

        In a step with `counts`, the mask is that of each row's new tokens, [rows, 1, most_tokens, columns], never None;
        rows are padded with their last token. `width`: of the ring, None for plain columns. `window`: most positions to
        attend to, the token's own included; None: no bound.
        """
        if self.counts is not None:
            key = ("drafted mask", width, window)
            if key not in self._cached:
                self._cached[key] = self._build_drafted_mask(width, window)
            return self._cached[key]
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

    def _build_drafted_mask(self, width: int | None, window: int | None) -> mx.array:
        counts, ends = self.counts or [], self._ends
        held = zip(self.values, counts, strict=True)
        last = mx.array(
            [[length + min(place, count - 1) for place in range(self.most_tokens)] for length, count in held]
        )
        last = last[:, :, None]
        num_columns = max(ends) if width is None else min(max(ends), width)
        position = mx.arange(num_columns, dtype=mx.int32)[None, None]
        if width is not None:  # column c of the ring holds the newest position that is written with p % width == c
            newest = mx.array(ends)[:, None, None] - 1
            position = newest - (newest - position) % width
        mask = (position >= 0) & (position <= last)
        if window is not None:
            mask = mask & (position > last - window)
        return mask[:, None]


class RowLengths(Lengths):
    """The lengths of the rows of a batch."""

    def __init__(self, max_drafts: int = 0) -> None:
        """`max_drafts`: tokens of a step, beside the first of each row, that may be refused."""
        super().__init__()
        self.values = []
        self.max_drafts = max_drafts
        self.is_wide = False
        """Whether a step's tokens come to the model by row, [rows, most tokens of a row], and not as separate rows."""
        self._segments: list[SegmentLengths] = []

    def segment(self, first: int, end: int | None) -> SegmentLengths:
        """Return the lengths of the rows within positions [first, end)."""
        segment = SegmentLengths(self, first, end)
        self._segments.append(segment)
        return segment

    def join(self, length: int) -> None:
        self._change([*self.values, length])

    def leave(self, row: int) -> None:
        """Remove a row; the last row takes its place."""
        self.values[row] = self.values[-1]
        self._change(self.values[:-1])

    def expect(self, counts: list[int], wide_tokens: int | None) -> None:
        """Set the tokens that the next step gives each row.

        `wide_tokens`: columns of tokens in the model's arrays, if they come by row; None: each token is a row.
        """
        self.counts, self.is_wide = counts, wide_tokens is not None
        self.most_tokens = max(counts) if wide_tokens is None else wide_tokens
        self._change(self.values)

    def advance(self, taken: Sequence[int] | None = None) -> None:
        """End the step: add the `taken` tokens to every row; one if None."""
        self.counts = None
        more = [1] * len(self.values) if taken is None else taken
        self._change([length + num for length, num in zip(self.values, more, strict=True)])

    def _change(self, values: list[int]) -> None:
        self.values = values
        self._cached.clear()
        for segment in self._segments:
            segment.follow()


class SegmentLengths(Lengths):
    """Lengths within a segment of positions, derived from those of the whole rows."""

    def __init__(self, whole: Lengths, first: int, end: int | None) -> None:
        super().__init__()
        self._whole, self._first, self._end = whole, first, end
        self.follow()

    def follow(self) -> None:
        """Update the lengths after those of the whole rows have changed."""
        self.values = [self.of(length) for length in self._whole.values]
        self.counts, self.most_tokens = self._whole.counts, self._whole.most_tokens
        self._cached.clear()

    def of(self, length: int) -> int:
        """Return how many of `length` tokens lie in the segment."""
        return max(0, min(length, self._end or length) - self._first)

    @property
    def _ends(self) -> list[int]:
        return [self.of(length + count) for length, count in zip(self._whole.values, self.counts or [], strict=True)]

    def _token_columns(self) -> list[int | None]:
        inside = range(self._first, 1 << 62 if self._end is None else self._end)
        return [position - self._first if position in inside else None for position in self._whole.positions]


@dataclass(frozen=True, slots=True)
class MovedRow:
    """Row copied out of one group, on its way to another: its columns in the order of their positions."""

    arrays: list[mx.array]


class Positions(Protocol):
    """Source of the position of the step's token: `Lengths`, or the groups of a batch."""

    @property
    def offset(self) -> int | mx.array: ...


class States(Protocol):
    """The cache of one layer for all rows of the batch, of a constant size per row, in the order of the batch."""

    def expect(self, counts: Sequence[int] | None) -> None:
        """Set the tokens that the next step gives each row, in the order of the batch; None: one."""

    def held(self) -> list[mx.array | None]:
        """Return the states of all rows, for `restore`: arrays that a step replaces, and does not change."""

    def restore(self, held: list[mx.array | None]) -> None:
        """Restore states that `held` returned, of the same rows in the same order."""

    def arrange(self, order: Sequence[int], joining: Sequence[Any]) -> None:
        """Hold other rows: the current ones, then the `joining` single caches (None: no token), by place in `order`."""

    @property
    def nbytes(self) -> int: ...


class Rows(Protocol):
    """The cache of one layer for the rows of a group: the methods that the batch and the model call."""

    def make_mask(self, num_tokens: int, return_array: bool = False, window_size: int | None = None) -> Any: ...

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]: ...

    def reserve(self, num_rows: int, num_tokens: int) -> list[mx.array]:
        """Make room, in one move, for this many rows of this many tokens each. Return the arrays still to be moved."""

    def join(self, single: Any, length: int) -> None:
        """Append a row: the content of an mlx-lm cache that holds `length` tokens (None: no token), or a MovedRow."""

    def take(self, row: int, length: int) -> MovedRow | None:
        """Copy a row of `length` tokens, for `join` in another group. Return None if nothing is held."""

    def copy_last(self) -> list[mx.array]:
        """Copy the last row's arrays, for `leave` to put in another's place; return an empty list if it needs none.

        Moving a row within one graph would copy the whole array: its reader still holds the buffer when it is to be
        written. So the copies are evaluated first, those of all layers together.
        """

    def leave(self, row: int) -> list[mx.array]:
        """Drop a row; the last row takes its place. Return the arrays still to be written.

        Call `copy_last` first, unless the last row is the one that leaves.
        """

    def fit(self, num_rows: int, num_tokens: int) -> None:
        """Hold no more than this many rows of at most this many tokens take."""

    @property
    def nbytes(self) -> int: ...


def resize(arrays: Sequence[mx.array], num_rows: int, num_tokens: int, keep_rows: int) -> list[mx.array]:
    """Copy [rows, heads, tokens, …] arrays to another capacity, keeping the first `keep_rows` rows."""
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
