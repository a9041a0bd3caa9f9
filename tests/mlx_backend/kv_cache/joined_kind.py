"""A made-up KV-cache kind, in one file: keys and values of a token side by side in one array. For test_new_kind.py.

It is written to be short, not fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import create_attention_mask

from mlx_backend.kv_cache.handler import CacheHandler, Segment, of_row
from mlx_backend.kv_cache.plan import CachePlan, CacheShape, PartShape
from mlx_backend.kv_cache.rows import RowLengths, Rows


class JoinedCache:
    """One sequence: [1, heads, tokens, 2 x dim], of which the first `offset` tokens count."""

    def __init__(self) -> None:
        self.joined: mx.array | None = None
        self.offset = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        held = None if self.joined is None else self.joined[:, :, : self.offset]
        self.joined = _appended(held, mx.concatenate([keys, values], axis=-1))
        self.offset = self.joined.shape[2]
        return mx.split(self.joined, 2, axis=-1)

    def make_mask(self, num_tokens: int, return_array: bool = False, window_size: int | None = None) -> Any:
        return create_attention_mask(num_tokens, self.offset, return_array, window_size)

    @property
    def state(self) -> list[mx.array]:
        return [] if self.joined is None else [self.joined]

    def empty(self) -> bool:
        return self.joined is None

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.state)


class JoinedRows:
    """Rows of it, an array each; None before the first token."""

    def __init__(self, lengths: RowLengths) -> None:
        self._lengths = lengths
        self._rows: list[mx.array | None] = []

    @property
    def offset(self) -> int | mx.array:
        return self._lengths.offset

    def make_mask(self, num_tokens: int, return_array: bool = False, window_size: int | None = None) -> Any:
        return self._lengths.mask(None, window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        new = mx.concatenate([keys, values], axis=-1)
        self._rows = [_appended(held, new[row : row + 1]) for row, held in enumerate(self._rows)]
        return mx.split(self.padded(), 2, axis=-1)

    def padded(self) -> mx.array:
        """[rows, heads, tokens of the longest row, 2 x dim]"""
        held = [array for array in self._rows if array is not None]
        longest = max(array.shape[2] for array in held)
        return mx.concatenate([mx.pad(row, [(0, 0), (0, 0), (0, longest - row.shape[2]), (0, 0)]) for row in held])

    def reserve(self, num_rows: int, num_tokens: int) -> list[mx.array]:
        return []

    def fit(self, num_rows: int, num_tokens: int) -> None:
        pass

    def join(self, single: Any, length: int) -> None:
        self._rows.append(single.joined[:, :, :length] if length else None)

    def take(self, row: int, length: int) -> None:
        raise NotImplementedError("rows of a kind that is not grouped are never moved")

    def copy_last(self) -> list[mx.array]:
        return []

    def leave(self, row: int) -> list[mx.array]:
        self._rows[row] = self._rows[-1]
        self._rows.pop()
        return []

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._rows if array is not None)


def _appended(held: mx.array | None, new: mx.array) -> mx.array:
    return new if held is None else mx.concatenate([held, new], axis=2)


class JoinedHandler(CacheHandler):
    """Handles both. It can be cut, and be a snapshot: which, the row says."""

    def read_shape(self, kind: str, cache: Any, config: Mapping[str, Any]) -> CacheShape:
        _, heads, _, width = cache.joined.shape
        part = PartShape(heads, width // 2, cache.joined.itemsize)
        return CacheShape(kind, part, part)

    def build_rows(self, cache: Any, lengths: RowLengths) -> Rows:
        return JoinedRows(lengths)

    def segments(self, plan: CachePlan) -> list[Segment]:
        return [Segment(num_arrays=1)]

    def segment_arrays(self, cache: Any) -> list[list[mx.array]]:
        return [[cache.padded() if isinstance(cache, JoinedRows) else cache.joined]]

    def set_array(self, cache: Any, segment: int, place: int, array: mx.array) -> None:
        cache.joined = array

    def set_length(self, cache: Any, length: int) -> None:
        cache.offset = length

    def take_snapshot(self, cache: Any, row: int | None, length: int) -> list[mx.array]:
        ((array,),) = self.segment_arrays(cache)
        return [of_row(array, row)[:, :, :length]]

    def restore_snapshot(self, cache: Any, arrays: list[mx.array], length: int) -> None:
        cache.joined, cache.offset = arrays.pop(0), length


HANDLER = JoinedHandler()
