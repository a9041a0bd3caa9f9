"""PlainRows: keys and values of full attention, and the two latents of MLA, which mlx-lm keeps as keys and values."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_backend.kv_cache.allocation import EAGER_BYTES, capacity_for
from mlx_backend.kv_cache.codec import FULL, Codec, Part
from mlx_backend.kv_cache.quantized import QuantizedKV
from mlx_backend.kv_cache.rows import Lengths, resize


class PlainRows:
    """The arrays of keys and values, [rows, heads, tokens, …] each, over-allocated in both rows and tokens.

    `width`: columns are a ring of so many (see RingRows); None here. `limit`: columns there can ever be.
    """

    width: int | None = None

    def __init__(self, lengths: Lengths, keys: Codec = FULL, values: Codec = FULL, limit: int | None = None) -> None:
        self._lengths, self._limit = lengths, limit
        self._codecs = (keys, values)
        self._num_rows = 0
        self._reserved = (0, 0)
        self.arrays: list[mx.array] = []
        """Those of the keys' codec, then those of the values'; none before the first token."""

    # ---- what the model calls, in a decode step ----

    @property
    def offset(self) -> int | mx.array:
        return self._lengths.offset

    def make_mask(self, num_tokens: int, return_array: bool = False, window_size: int | None = None) -> mx.array | None:
        check_decode(num_tokens)
        return self._lengths.mask(self.width, window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Part, Part]:
        """Write one token per row; return the columns in use. keys, values: [rows, heads, 1, dim]."""
        columns = self.append(keys, values)
        num_keys = self._codecs[0].num_arrays
        return self._codecs[0].fetch(columns[:num_keys], 1), self._codecs[1].fetch(columns[num_keys:], 1)

    def append(self, keys: mx.array, values: mx.array) -> list[mx.array]:
        """Write one token per row; return the arrays of the columns in use."""
        check_decode(keys.shape[2])
        num_rows = len(self._lengths)
        used = self._columns(self._lengths.longest + 1)
        new = [*self._codecs[0].encode(keys), *self._codecs[1].encode(values)]
        self._allocate(new, num_rows, used)
        self._write(new, num_rows)
        return [array[:num_rows, :, :used] for array in self.arrays]

    def _write(self, new: list[mx.array], num_rows: int) -> None:
        if self._lengths.is_uniform:
            column = self._lengths.longest if self.width is None else self._lengths.longest % self.width
            for array, part in zip(self.arrays, new, strict=True):
                array[:num_rows, :, column : column + 1] = part
        else:
            rows, columns = self._lengths.row_indices, self._lengths.columns(self.width)
            for array, part in zip(self.arrays, new, strict=True):
                array[rows, :, columns] = part[:, :, 0]

    # ---- what the runner calls, between steps ----

    def reserve(self, num_rows: int, num_tokens: int) -> None:
        self._reserved = (num_rows, self._columns(num_tokens))
        if self.arrays:
            self._allocate(self.arrays, num_rows, self._columns(num_tokens))

    def join(self, single: Any, length: int) -> None:
        row = self._num_rows
        self._num_rows += 1
        if single is None or length == 0:
            return
        if not self.arrays and self._reserved[0] <= 1 and self._adopt(single):
            return
        content = self._content(single, length)
        self._allocate(content, row + 1, self._columns(length))
        for start, stop, column in self._spans(length, content[0].shape[2]):
            for array, columns in zip(self.arrays, content, strict=True):
                array[row : row + 1, :, column : column + stop - start] = columns[:, :, start:stop]
        if sum(columns.nbytes for columns in content) > EAGER_BYTES:
            mx.eval(self.arrays)

    def leave(self, row: int) -> None:
        self._reserved = (0, 0)
        self._num_rows -= 1
        last = self._num_rows
        if last == 0:
            self.arrays = []
        elif row != last:
            for array in self.arrays:
                array[row : row + 1] = array[last : last + 1]

    def fit(self, num_rows: int, num_tokens: int) -> None:
        if not self.arrays:
            return
        rows, _, tokens, _ = self.arrays[0].shape
        most = self._capacity(self.arrays, num_rows, self._columns(num_tokens))
        if rows > most[0] or tokens > most[1]:
            self._resize(min(most[0], rows), min(most[1], tokens))

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    # ---- where a ring differs ----

    def _columns(self, num_tokens: int) -> int:
        return num_tokens

    def _adopt(self, single: Any) -> bool:
        """Take over the arrays of the first row as they are, where that is no copy. True when done."""
        self.arrays = list(single.arrays) if isinstance(single, QuantizedKV) else [single.keys, single.values]
        return True

    def _content(self, single: Any, length: int) -> list[mx.array]:
        if isinstance(single, QuantizedKV):
            return single.content(length)
        return [single.keys[..., :length, :], single.values[..., :length, :]]

    def _spans(self, length: int, num_kept: int) -> list[tuple[int, int, int]]:
        """(start, stop) of the content and the column it goes to."""
        return [(0, num_kept, 0)]

    # ---- memory ----

    def _allocate(self, like: list[mx.array], num_rows: int, num_tokens: int) -> None:
        """Hold at least so many rows and columns; heads, dims and dtypes are those of `like`."""
        num_rows, num_tokens = max(num_rows, self._reserved[0]), max(num_tokens, self._reserved[1])
        if not self.arrays:
            rows, tokens = self._capacity(like, num_rows, num_tokens)
            shapes = ((rows, array.shape[1], tokens, array.shape[3]) for array in like)
            self.arrays = [mx.zeros(shape, dtype=array.dtype) for shape, array in zip(shapes, like, strict=True)]
            return
        rows, _, tokens, _ = self.arrays[0].shape
        if num_rows > rows or num_tokens > tokens:
            self._resize(*self._capacity(like, num_rows, max(num_tokens, tokens)))

    def _capacity(self, like: list[mx.array], num_rows: int, num_tokens: int) -> tuple[int, int]:
        rows, tokens = capacity_for(num_rows, num_tokens, _row_token_bytes(like))
        return rows, tokens if self._limit is None else min(tokens, self._limit)

    def _resize(self, num_rows: int, num_tokens: int) -> None:
        kept = min(self._num_rows, self.arrays[0].shape[0], num_rows)
        self.arrays = resize(self.arrays, num_rows, num_tokens, kept)


def _row_token_bytes(arrays: list[mx.array]) -> int:
    return sum(array.shape[1] * array.shape[3] * array.itemsize for array in arrays)


def check_decode(num_tokens: int) -> None:
    """Raise ValueError for anything but one token per row."""
    if num_tokens != 1:
        raise ValueError(f"a batch of rows takes one token per row and step, not {num_tokens}")
