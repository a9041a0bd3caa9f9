"""PlainRows: keys and values of full attention, and the two latents of MLA, which mlx-lm keeps as keys and values."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_backend.kv_cache.rows import EAGER_BYTES, RowLengths, capacity_for, resize


class PlainRows:
    """Keys [rows, heads, tokens, dim] and values likewise, over-allocated in both rows and tokens.

    `width`: columns are a ring of so many (see RingRows); None here.
    """

    width: int | None = None

    def __init__(self, lengths: RowLengths) -> None:
        self._lengths = lengths
        self._num_rows = 0
        self._reserved = (0, 0)
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    # ---- what the model calls, in a decode step ----

    @property
    def offset(self) -> int | mx.array:
        return self._lengths.offset

    def make_mask(self, num_tokens: int, return_array: bool = False, window_size: int | None = None) -> mx.array | None:
        _check_decode(num_tokens)
        return self._lengths.mask(self.width, window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write one token per row; return the columns in use. keys, values: [rows, heads, 1, dim]."""
        _check_decode(keys.shape[2])
        num_rows = len(self._lengths)
        used = self._columns(self._lengths.longest + 1)
        self._allocate(keys, values, num_rows, used)
        assert self.keys is not None and self.values is not None
        if self._lengths.is_uniform:
            column = self._lengths.longest if self.width is None else self._lengths.longest % self.width
            self.keys[:num_rows, :, column : column + 1] = keys
            self.values[:num_rows, :, column : column + 1] = values
        else:
            rows, columns = self._lengths.row_indices, self._lengths.columns(self.width)
            self.keys[rows, :, columns] = keys[:, :, 0]
            self.values[rows, :, columns] = values[:, :, 0]
        return self.keys[:num_rows, :, :used], self.values[:num_rows, :, :used]

    # ---- what the runner calls, between steps ----

    def reserve(self, num_rows: int, num_tokens: int) -> None:
        self._reserved = (num_rows, self._columns(num_tokens))
        if self.keys is not None and self.values is not None:
            self._allocate(self.keys, self.values, num_rows, self._columns(num_tokens))

    def join(self, single: Any, length: int) -> None:
        row = self._num_rows
        self._num_rows += 1
        if single is None or length == 0:
            return
        if self.keys is None and self._reserved[0] <= 1 and self._adopt(single):
            return
        keys, values = self._content(single, length)
        self._allocate(keys, values, row + 1, self._columns(length))
        assert self.keys is not None and self.values is not None
        for start, stop, column in self._spans(length, keys.shape[2]):
            self.keys[row : row + 1, :, column : column + stop - start] = keys[:, :, start:stop]
            self.values[row : row + 1, :, column : column + stop - start] = values[:, :, start:stop]
        if keys.nbytes > EAGER_BYTES:
            mx.eval(self.keys, self.values)

    def leave(self, row: int) -> None:
        self._reserved = (0, 0)
        self._num_rows -= 1
        last = self._num_rows
        if self._num_rows == 0:
            self.keys = self.values = None
        elif row != last and self.keys is not None and self.values is not None:
            self.keys[row : row + 1] = self.keys[last : last + 1]
            self.values[row : row + 1] = self.values[last : last + 1]

    def fit(self, num_rows: int, num_tokens: int) -> None:
        if self.keys is None or self.values is None:
            return
        rows, _, tokens, _ = self.keys.shape
        needed = capacity_for(num_rows, self._columns(num_tokens), _row_token_bytes(self.keys, self.values))
        if (needed[0] * 2 <= rows or needed[1] * 2 <= tokens) and self.nbytes > EAGER_BYTES:
            self._resize(min(needed[0], rows), min(needed[1], tokens))

    @property
    def nbytes(self) -> int:
        return 0 if self.keys is None or self.values is None else self.keys.nbytes + self.values.nbytes

    # ---- where a ring differs ----

    def _columns(self, num_tokens: int) -> int:
        return num_tokens

    def _adopt(self, single: Any) -> bool:
        """Take over the arrays of the first row as they are, where that is no copy. True when done."""
        self.keys, self.values = single.keys, single.values
        return True

    def _content(self, single: Any, length: int) -> tuple[mx.array, mx.array]:
        return single.keys[..., :length, :], single.values[..., :length, :]

    def _spans(self, length: int, num_kept: int) -> list[tuple[int, int, int]]:
        """(start, stop) of the content and the column it goes to."""
        return [(0, num_kept, 0)]

    # ---- memory ----

    def _allocate(self, keys: mx.array, values: mx.array, num_rows: int, num_tokens: int) -> None:
        """Hold at least so many rows and columns; heads, dims and dtypes are those of `keys` and `values`."""
        num_rows, num_tokens = max(num_rows, self._reserved[0]), max(num_tokens, self._reserved[1])
        if self.keys is None:
            rows, tokens = self._capacity(keys, values, num_rows, num_tokens)
            self.keys = mx.zeros((rows, keys.shape[1], tokens, keys.shape[3]), dtype=keys.dtype)
            self.values = mx.zeros((rows, values.shape[1], tokens, values.shape[3]), dtype=values.dtype)
            return
        rows, _, tokens, _ = self.keys.shape
        if num_rows > rows or num_tokens > tokens:
            capacity = self._capacity(keys, values, num_rows, num_tokens)
            self._resize(max(capacity[0], rows), max(capacity[1], tokens))

    def _capacity(self, keys: mx.array, values: mx.array, num_rows: int, num_tokens: int) -> tuple[int, int]:
        rows, tokens = capacity_for(num_rows, num_tokens, _row_token_bytes(keys, values))
        return rows, tokens if self.width is None else min(tokens, self.width)

    def _resize(self, num_rows: int, num_tokens: int) -> None:
        assert self.keys is not None and self.values is not None
        kept = min(self._num_rows, self.keys.shape[0], num_rows)
        self.keys, self.values = resize((self.keys, self.values), num_rows, num_tokens, kept)


def _row_token_bytes(keys: mx.array, values: mx.array) -> int:
    return sum(array.shape[1] * array.shape[3] * array.itemsize for array in (keys, values))


def _check_decode(num_tokens: int) -> None:
    if num_tokens != 1:
        raise ValueError(f"a batch of rows takes one token per row and step, not {num_tokens}")
