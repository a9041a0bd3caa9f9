"""The state of recurrent layers (state-space, linear attention, short convolutions), in mlx-lm's ArraysCache.

It is small and of constant size per row: one array for all rows of a batch, across groups, gathered as rows change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from mlx_backend.kv_cache.handler import CacheHandler, of_row
from mlx_backend.kv_cache.plan import CacheShape
from mlx_backend.kv_cache.rows import Positions, States


class StateRows:
    """Arrays [rows, …], as mlx-lm's ArraysCache holds them for one row; None before the first token."""

    left_padding = None
    """Read by mlx-lm's models; a decode step has no padding before its tokens."""

    def __init__(self, positions: Positions, size: int) -> None:
        self._positions = positions
        self._state: list[mx.array | None] = [None] * size
        self._num_rows = 0
        self.lengths: mx.array | None = None
        """Tokens of each row in this step, int32 [rows], read by mlx-lm's models; None: all of them."""

    def __getitem__(self, index: int) -> mx.array | None:
        return self._state[index]

    def __setitem__(self, index: int, value: mx.array) -> None:
        self._state[index] = value

    @property
    def offset(self) -> int | mx.array:
        return self._positions.offset

    def make_mask(self, num_tokens: int) -> mx.array | None:
        """Return bool [rows, num_tokens]; None if no row has padding."""
        return None if self.lengths is None else mx.arange(num_tokens) < self.lengths[:, None]

    def advance(self, num_tokens: int) -> None:
        """Do nothing: models call it to count tokens, which the batch does."""

    def expect(self, counts: Sequence[int] | None) -> None:
        is_padded = counts is not None and min(counts) < max(counts)
        self.lengths = mx.array(counts, dtype=mx.int32) if is_padded else None

    def held(self) -> list[mx.array | None]:
        return list(self._state)

    def restore(self, held: list[mx.array | None]) -> None:
        self._state = list(held)

    def empty(self) -> bool:
        return self._state[0] is None

    def arrange(self, order: Sequence[int], joining: Sequence[Any]) -> None:
        singles = [[None] * len(self._state) if single is None else list(single.cache) for single in joining]
        for place, old in enumerate(self._state):
            self._state[place] = _gathered(old, self._num_rows, [single[place] for single in singles], order)
        self._num_rows = len(order)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    @property
    def arrays(self) -> list[mx.array]:
        return [array for array in self._state if array is not None]


def _gathered(
    old: mx.array | None, num_old: int, joining: list[mx.array | None], order: Sequence[int]
) -> mx.array | None:
    """Return rows `old`, then `joining`, by place in `order`; a row without a state is zero, as in a model's first
    step."""
    like = next((array for array in (old, *joining) if array is not None), None)
    if like is None or not order:
        return None
    zeros = mx.zeros((1, *like.shape[1:]), dtype=like.dtype)
    parts = [zeros if new is None else new for new in joining]
    if num_old:
        parts.insert(0, mx.repeat(zeros, num_old, axis=0) if old is None else old)
    rows = parts[0] if len(parts) == 1 else mx.concatenate(parts)
    return rows if list(order) == list(range(rows.shape[0])) else rows[mx.array(order, dtype=mx.int32)]


class StateHandler(CacheHandler):
    """Handler of mlx-lm's ArraysCache, and of StateRows. A state stands for all tokens before it, so it is not cut."""

    def read_shape(self, kind: str, cache: Any, config: Mapping[str, Any]) -> CacheShape:
        return CacheShape(kind, state_bytes=sum(array.nbytes for array in _held(cache)))

    def build_states(self, cache: Any, positions: Positions) -> States:
        return StateRows(positions, len(cache.cache))

    def take_snapshot(self, cache: Any, row: int | None, length: int) -> list[mx.array]:
        return [of_row(array, row) for array in cache.arrays] if isinstance(cache, StateRows) else _held(cache)

    def restore_snapshot(self, cache: Any, arrays: list[mx.array], length: int) -> None:
        cache.cache = [arrays.pop(0) for _ in cache.cache]


def _held(cache: Any) -> list[mx.array]:
    return [array for array in cache.cache if array is not None]


HANDLER = StateHandler()
