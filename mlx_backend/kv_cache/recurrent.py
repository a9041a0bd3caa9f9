"""The state of recurrent layers (state-space, linear attention, short convolutions), in mlx-lm's ArraysCache.

Of constant size per row and small, so rows are simply concatenated and gathered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from mlx_backend.kv_cache.handler import CacheHandler, of_row
from mlx_backend.kv_cache.plan import CacheShape
from mlx_backend.kv_cache.rows import RowLengths, Rows


class StateRows:
    """Arrays [rows, …], as mlx-lm's ArraysCache holds them for one row; None before the first token."""

    lengths = None
    left_padding = None
    """Read by mlx-lm's models; a decode step has no padding."""

    def __init__(self, lengths: RowLengths, size: int) -> None:
        self._lengths = lengths
        self._num_rows = 0
        self._state: list[mx.array | None] = [None] * size

    def __getitem__(self, index: int) -> mx.array | None:
        return self._state[index]

    def __setitem__(self, index: int, value: mx.array) -> None:
        self._state[index] = value

    @property
    def offset(self) -> int | mx.array:
        return self._lengths.offset

    def make_mask(self, num_tokens: int) -> None:
        return None

    def advance(self, num_tokens: int) -> None:
        """The models' own counting of padded tokens; there are none."""

    def empty(self) -> bool:
        return self._state[0] is None

    def reserve(self, num_rows: int, num_tokens: int) -> None:
        """Do nothing: the size of a row does not grow."""

    def join(self, single: Any, length: int) -> None:
        members = [None] * len(self._state) if single is None or length == 0 else list(single.cache)
        self._state = [_append(old, new, self._num_rows) for old, new in zip(self._state, members, strict=True)]
        self._num_rows += 1

    def copy_last(self) -> list[mx.array]:
        """Return nothing: states are small, and are gathered anew."""
        return []

    def leave(self, row: int) -> None:
        self._num_rows -= 1
        kept = [*range(row), self._num_rows, *range(row + 1, self._num_rows)][: self._num_rows]
        indices = mx.array(kept, dtype=mx.int32)
        self._state = [None if array is None or not kept else array[indices] for array in self._state]

    def fit(self, num_rows: int, num_tokens: int) -> None:
        """Do nothing: nothing is over-allocated."""

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    @property
    def arrays(self) -> list[mx.array]:
        return [array for array in self._state if array is not None]


def _append(old: mx.array | None, new: mx.array | None, num_old: int) -> mx.array | None:
    """Rows `old` and then `new`; a row without a state yet starts at zero, as the models start it."""
    if old is None and new is None:
        return None
    like = old if old is not None else new
    assert like is not None
    zeros = mx.zeros((1, *like.shape[1:]), dtype=like.dtype)
    above = old if old is not None else mx.repeat(zeros, num_old, axis=0)
    return mx.concatenate([above, zeros if new is None else new]) if num_old else new


class StateHandler(CacheHandler):
    """Handles mlx-lm's ArraysCache, and StateRows. A state stands for all tokens before it: no cut."""

    def read_shape(self, kind: str, cache: Any, config: Mapping[str, Any]) -> CacheShape:
        return CacheShape(kind, state_bytes=sum(array.nbytes for array in _held(cache)))

    def build_rows(self, cache: Any, lengths: RowLengths) -> Rows:
        return StateRows(lengths, len(cache.cache))

    def take_snapshot(self, cache: Any, row: int | None, length: int) -> list[mx.array]:
        return [of_row(array, row) for array in cache.arrays] if isinstance(cache, StateRows) else _held(cache)

    def restore_snapshot(self, cache: Any, arrays: list[mx.array], length: int) -> None:
        cache.cache = [arrays.pop(0) for _ in cache.cache]


def _held(cache: Any) -> list[mx.array]:
    return [array for array in cache.cache if array is not None]


HANDLER = StateHandler()
