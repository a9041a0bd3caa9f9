"""Keys and values of full attention, in mlx-lm's KVCache: one column per token, kept for the whole sequence.

PlainRows holds all columns alike; StartRows holds the first in full precision and the others quantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from mlx_backend.kv_cache.allocation import EAGER_BYTES, TOKEN_STEP, allocated
from mlx_backend.kv_cache.codec import FULL, Codec, Part, with_head
from mlx_backend.kv_cache.handler import CacheHandler, Segment, part_shape
from mlx_backend.kv_cache.plan import CachePlan, CacheShape, Precision
from mlx_backend.kv_cache.quantized import QuantizedKV, StartKV
from mlx_backend.kv_cache.rows import Lengths, MovedRow, RowLengths, Rows, resize


class PlainRows:
    """The arrays of keys and values, [rows, heads, tokens, …] each, over-allocated in both rows and tokens.

    `width`: size of the ring of columns (see RingRows); None here. `limit`: the most columns there can ever be.
    """

    width: int | None = None

    def __init__(self, lengths: Lengths, keys: Codec = FULL, values: Codec = FULL, limit: int | None = None) -> None:
        self._lengths, self._limit = lengths, limit
        self._codecs = (keys, values)
        self._num_rows = 0
        self._reserved = (0, 0)
        self._copies: list[mx.array] = []
        """Copies of the last row, while another leaves."""
        self.arrays: list[mx.array] = []
        """Arrays of the keys' codec, then those of the values'; none before the first token."""

    # ---- called by the model, in a decode step ----

    @property
    def offset(self) -> int | mx.array:
        return self._lengths.offset

    def make_mask(self, num_tokens: int, return_array: bool = False, window_size: int | None = None) -> mx.array | None:
        check_decode(num_tokens)
        return self._lengths.mask(self.width, window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Part, Part]:
        """Write the step's tokens; return the columns in use. keys, values: [tokens, heads, 1, dim], row by row."""
        columns = self.append(keys, values)
        num_keys = self._codecs[0].num_arrays
        return self._codecs[0].fetch(columns[:num_keys], 1), self._codecs[1].fetch(columns[num_keys:], 1)

    def append(self, keys: mx.array, values: mx.array) -> list[mx.array]:
        """Write the step's tokens; return the arrays of the columns in use."""
        check_decode(keys.shape[2])
        num_rows = len(self._lengths)
        used = self._columns(self._lengths.longest_after)
        new = [*self._codecs[0].encode(keys), *self._codecs[1].encode(values)]
        self._allocate(new, num_rows, used)
        self._write(new, num_rows)
        return [array[:num_rows, :, :used] for array in self.arrays]

    def _write(self, new: list[mx.array], num_rows: int) -> None:
        if self._lengths.counts is not None:
            _, heads, columns, _ = self.arrays[0].shape
            taken, places = self._lengths.drafted_columns(self.width, heads, columns)
            if places is not None:
                self._scatter(new if taken is None else [part[taken] for part in new], places)
            return
        if self._lengths.is_uniform:
            column = self._lengths.longest if self.width is None else self._lengths.longest % self.width
            for array, part in zip(self.arrays, new, strict=True):
                array[:num_rows, :, column : column + 1] = part
            return
        _, heads, columns, _ = self.arrays[0].shape
        self._scatter(new, self._lengths.flat_columns(self.width, heads, columns))

    def _scatter(self, new: list[mx.array], places: mx.array) -> None:
        for number, (array, part) in enumerate(zip(self.arrays, new, strict=True)):
            flat = array.reshape(-1, array.shape[3])  # a view: one index per axis would cost ten more operations
            flat[places] = part.reshape(-1, part.shape[3])
            self.arrays[number] = flat.reshape(array.shape)

    # ---- called by the runner, between steps ----

    def reserve(self, num_rows: int, num_tokens: int) -> list[mx.array]:
        self._reserved = (num_rows, self._columns(num_tokens))
        held = self.arrays
        if held:
            self._allocate(held, num_rows, self._columns(num_tokens))
        return [] if self.arrays is held else self.arrays

    def join(self, single: Any, length: int) -> None:
        row = self._num_rows
        self._num_rows += 1
        if single is None or length == 0:
            return
        if not self.arrays and self._reserved[0] <= 1 and not isinstance(single, MovedRow) and self._adopt(single):
            return
        content = single.arrays if isinstance(single, MovedRow) else self._content(single, length)
        self._allocate(content, row + 1, self._columns(length))
        for start, stop, column in self._spans(length, content[0].shape[2]):
            for array, columns in zip(self.arrays, content, strict=True):
                array[row : row + 1, :, column : column + stop - start] = columns[:, :, start:stop]
        if sum(columns.nbytes for columns in content) > EAGER_BYTES:
            mx.eval(self.arrays)

    def take(self, row: int, length: int) -> MovedRow | None:
        if not self.arrays or length == 0:
            return None
        spans = self._spans(length, self._columns(length))
        return MovedRow([_copied_row(array, row, spans) for array in self.arrays])

    def copy_last(self) -> list[mx.array]:
        last = mx.array([self._num_rows - 1])
        self._copies = [mx.take(array, last, axis=0) for array in self.arrays]  # a slice would share the buffer
        return self._copies

    def leave(self, row: int) -> list[mx.array]:
        self._reserved = (0, 0)
        copies, self._copies = self._copies, []
        self._num_rows -= 1
        if self._num_rows == 0:
            self.arrays = []
        if row == self._num_rows:
            return []
        for array, columns in zip(self.arrays, copies, strict=True):
            array[row : row + 1] = columns
        return self.arrays

    def fit(self, num_rows: int, num_tokens: int) -> None:
        if not self.arrays:
            return
        rows, _, tokens, _ = self.arrays[0].shape
        columns = self._allocated(self._columns(num_tokens))
        if rows > num_rows or tokens > columns:
            self._resize(min(num_rows, rows), min(columns, tokens))

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    # ---- overridden by rings ----

    def _columns(self, num_tokens: int) -> int:
        return num_tokens

    def _adopt(self, single: Any) -> bool:
        """Take over the arrays of the first row, if that needs no copy. Return True when done."""
        self.arrays = list(single.arrays) if isinstance(single, QuantizedKV) else [single.keys, single.values]
        return True

    def _content(self, single: Any, length: int) -> list[mx.array]:
        if isinstance(single, QuantizedKV):
            return single.content(length)
        return [single.keys[..., :length, :], single.values[..., :length, :]]

    def _spans(self, length: int, num_kept: int) -> list[tuple[int, int, int]]:
        """Return (start, stop) in the content and the column it goes to, for each span."""
        return [(0, num_kept, 0)]

    # ---- memory ----

    def _allocate(self, like: list[mx.array], num_rows: int, num_tokens: int) -> None:
        """Hold at least this many rows and columns; heads, dims and dtypes are those of `like`."""
        num_rows, num_tokens = max(num_rows, self._reserved[0]), max(num_tokens, self._reserved[1])
        if not self.arrays:
            shapes = ((num_rows, a.shape[1], self._allocated(num_tokens), a.shape[3]) for a in like)
            self.arrays = [mx.zeros(shape, dtype=array.dtype) for shape, array in zip(shapes, like, strict=True)]
            return
        rows, _, tokens, _ = self.arrays[0].shape
        if num_rows > rows or num_tokens > tokens:
            self._resize(max(num_rows, rows), self._allocated(max(num_tokens, tokens)))

    def _allocated(self, num_tokens: int) -> int:
        columns = max(TOKEN_STEP, allocated(num_tokens))
        return columns if self._limit is None else min(columns, self._limit)

    def _resize(self, num_rows: int, num_tokens: int) -> None:
        kept = min(self._num_rows, self.arrays[0].shape[0], num_rows)
        self.arrays = resize(self.arrays, num_rows, num_tokens, kept)


def _copied_row(array: mx.array, row: int, spans: list[tuple[int, int, int]]) -> mx.array:
    """Copy a row's columns: a slice would keep all rows alive, and their next write would copy them."""
    parts = [mx.take(array[:, :, at : at + b - a], mx.array([row]), axis=0) for a, b, at in spans]
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)


def check_decode(num_tokens: int) -> None:
    """Raise ValueError unless there is one token per row."""
    if num_tokens != 1:
        raise ValueError(f"a batch of rows takes one token per row and step, not {num_tokens}")


class StartRows:
    """Two PlainRows side by side: tokens at positions below `start` in `head`; the others, quantized, in `rest`.

    Every token is written to both, so that rows of any length take the same steps. In the part where it does not
    belong, it goes to a column that nothing attends to; `head` has one extra column for that.
    """

    def __init__(self, lengths: RowLengths, start: int, keys: Codec, values: Codec) -> None:
        self._lengths, self._start = lengths, start
        self._in_head, self._in_rest = lengths.segment(0, start), lengths.segment(start, None)
        self.head = PlainRows(self._in_head, limit=start + 1)
        self.rest = PlainRows(self._in_rest, keys, values)

    @property
    def offset(self) -> int | mx.array:
        return self._lengths.offset

    def make_mask(self, num_tokens: int, return_array: bool = False, window_size: int | None = None) -> mx.array | None:
        check_decode(num_tokens)
        return self._lengths.mask(None, window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Part, Part]:
        """Write the step's tokens as PlainRows does; a column of the result is a position."""
        head = [array[:, :, : self._start] for array in self.head.append(keys, values)]
        if self._lengths.longest_after <= self._start:
            return head[0], head[1]
        rest = self.rest.update_and_fetch(keys, values)
        return with_head(head[0], rest[0]), with_head(head[1], rest[1])

    def reserve(self, num_rows: int, num_tokens: int) -> list[mx.array]:
        head = self.head.reserve(num_rows, min(num_tokens, self._start + 1))
        return [*head, *self.rest.reserve(num_rows, max(0, num_tokens - self._start))]

    def join(self, single: Any, length: int) -> None:
        head, rest = (single.head, single.rest) if isinstance(single, StartKV) else _parted(single)
        self.head.join(head, self._in_head.of(length))
        self.rest.join(rest, self._in_rest.of(length))

    def take(self, row: int, length: int) -> MovedRow | None:
        parts = self.head.take(row, self._in_head.of(length)), self.rest.take(row, self._in_rest.of(length))
        return MovedRow([array for part in parts if part is not None for array in part.arrays]) if parts[0] else None

    def copy_last(self) -> list[mx.array]:
        return [*self.head.copy_last(), *self.rest.copy_last()]

    def leave(self, row: int) -> list[mx.array]:
        return [*self.head.leave(row), *self.rest.leave(row)]

    def fit(self, num_rows: int, num_tokens: int) -> None:
        self.head.fit(num_rows, min(num_tokens, self._start + 1))
        self.rest.fit(num_rows, max(0, num_tokens - self._start))

    @property
    def nbytes(self) -> int:
        return self.head.nbytes + self.rest.nbytes


def _parted(moved: MovedRow | None) -> tuple[MovedRow | None, MovedRow | None]:
    """Return the head of a row of StartRows, and the rest."""
    if moved is None:
        return None, None
    return MovedRow(moved.arrays[:2]), MovedRow(moved.arrays[2:]) if moved.arrays[2:] else None


class PlainHandler(CacheHandler):
    """Handler of mlx-lm's KVCache, of its quantized forms QuantizedKV and StartKV, and of their rows."""

    def read_shape(self, kind: str, cache: Any, config: Mapping[str, Any]) -> CacheShape | None:
        if cache.keys is None:
            return CacheShape(kind)
        return CacheShape(kind, part_shape(cache.keys), part_shape(cache.values))

    def build_rows(self, cache: Any, lengths: RowLengths) -> Rows:
        if isinstance(cache, StartKV):
            return StartRows(lengths, cache.start, *cache.codecs)
        return PlainRows(lengths, *cache.codecs) if isinstance(cache, QuantizedKV) else PlainRows(lengths)

    def build_quantized(self, plan: CachePlan, keys: Codec, values: Codec) -> QuantizedKV | StartKV:
        return StartKV(plan.start, keys, values) if plan.start else QuantizedKV(keys, values)

    def segments(self, plan: CachePlan) -> list[Segment]:
        num_arrays = _num_arrays(plan.keys) + _num_arrays(plan.values)
        if not plan.start:
            return [Segment(num_arrays)]
        return [Segment(2, 0, plan.start), Segment(num_arrays, plan.start)]

    def segment_arrays(self, cache: Any) -> list[list[mx.array]]:
        if isinstance(cache, KVCache):
            return [[cache.keys, cache.values]]
        if isinstance(cache, StartKV | StartRows):
            return [cache.head.arrays, cache.rest.arrays]
        return [cache.arrays]

    def set_array(self, cache: Any, segment: int, place: int, array: mx.array) -> None:
        if isinstance(cache, KVCache):
            setattr(cache, ("keys", "values")[place], array)
        else:
            self.segment_arrays(cache)[segment][place : place + 1] = [array]

    def set_length(self, cache: Any, length: int) -> None:
        if isinstance(cache, StartKV):
            cache.head.offset, cache.rest.offset = min(length, cache.start), max(0, length - cache.start)
        else:
            cache.offset = length


def _num_arrays(precision: Precision | None) -> int:
    return 1 if precision is None else 3


HANDLER = PlainHandler()
