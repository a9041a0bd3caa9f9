"""StartRows: rows whose first columns are in full precision and whose others are quantized.

Two PlainRows side by side. Every token is written to both, so that rows of any lengths take the same steps: to the
one where it does not belong, it goes into a column that nothing attends to.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_backend.kv_cache.codec import Codec, Part, with_head
from mlx_backend.kv_cache.plain import PlainRows, check_decode
from mlx_backend.kv_cache.rows import RowLengths


class StartRows:
    """The tokens at positions below `start` in `head`, which has one column more; the others in `rest`."""

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
        """As PlainRows': a column of what is returned is a position."""
        head = [array[:, :, : self._start] for array in self.head.append(keys, values)]
        if self._lengths.longest < self._start:
            return head[0], head[1]
        rest = self.rest.update_and_fetch(keys, values)
        return with_head(head[0], rest[0]), with_head(head[1], rest[1])

    def reserve(self, num_rows: int, num_tokens: int) -> None:
        self.head.reserve(num_rows, min(num_tokens, self._start + 1))
        self.rest.reserve(num_rows, max(0, num_tokens - self._start))

    def join(self, single: Any, length: int) -> None:
        self.head.join(None if single is None else single.head, self._in_head.of(length))
        self.rest.join(None if single is None else single.rest, self._in_rest.of(length))

    def leave(self, row: int) -> None:
        self.head.leave(row)
        self.rest.leave(row)

    def fit(self, num_rows: int, num_tokens: int) -> None:
        self.head.fit(num_rows, min(num_tokens, self._start + 1))
        self.rest.fit(num_rows, max(0, num_tokens - self._start))

    @property
    def nbytes(self) -> int:
        return self.head.nbytes + self.rest.nbytes
