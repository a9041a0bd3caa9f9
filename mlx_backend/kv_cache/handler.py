"""CacheHandler: the interface that the module of a KV-cache kind provides, beside the kind's row in `spec`.

A `cache` is either a single cache, which holds one sequence and has one of the row's `cache_classes`, or the rows that
`build_rows` made of one. The first axis of arrays is the batch for rows, and 1 for a single cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_backend.kv_cache.codec import Codec, ColumnForm
from mlx_backend.kv_cache.plan import CachePlan, CacheShape, PartShape
from mlx_backend.kv_cache.rows import Positions, RowLengths, Rows, States


@dataclass(frozen=True, slots=True)
class Segment:
    """Positions from `first` on and before `end` (None: all further ones), held in `num_arrays` arrays.

    Each is [rows, heads, tokens, …], one column per position.
    """

    num_arrays: int
    first: int = 0
    end: int | None = None


class CacheHandler:
    """Stateless handler of the caches of one kind. A kind overrides the methods that its row claims."""

    column_forms: tuple[ColumnForm, ColumnForm] = ("quantized", "quantized")
    """The forms in which attention takes quantized keys, and values."""

    # ---- every kind ----

    def read_shape(self, kind: str, cache: Any, config: Mapping[str, Any]) -> CacheShape | None:
        """Return the shape of a single cache that a forward pass was built with; None if it is of another kind.

        `kind`: the row's name. `config`: the model's. Nothing is computed: arrays have their shapes before that.
        """
        raise NotImplementedError

    # ---- is_batched; build_rows unless is_state ----

    def unbatched_reason(self, cache: Any) -> str | None:
        """Return the reason why this cache, although of a batched kind, cannot be batched; None if it can."""
        return None

    def build_rows(self, cache: Any, lengths: RowLengths) -> Rows:
        """Build a cache without rows for single caches like `cache`, which is empty."""
        raise NotImplementedError

    # ---- is_batched and is_state ----

    def build_states(self, cache: Any, positions: Positions) -> States:
        """Build a cache without rows for single caches like `cache`, which is empty."""
        raise NotImplementedError

    # ---- is_quantizable ----

    def build_quantized(self, plan: CachePlan, keys: Codec, values: Codec) -> Any:
        """Build an empty single cache that holds keys and values in these codecs."""
        raise NotImplementedError

    # ---- is_cut ----

    def segments(self, plan: CachePlan) -> list[Segment]:
        """Return the segments into which positions are divided."""
        raise NotImplementedError

    def segment_arrays(self, cache: Any) -> list[list[mx.array]]:
        """Return the arrays of every segment, as held. Those of an empty single cache may be None or missing."""
        raise NotImplementedError

    def set_array(self, cache: Any, segment: int, place: int, array: mx.array) -> None:
        """Replace one array of a single cache, or append it if there are only `place` of them yet."""
        raise NotImplementedError

    def set_length(self, cache: Any, length: int) -> None:
        """Set the length of a single cache to the `length` tokens that its new arrays hold."""
        raise NotImplementedError

    # ---- not is_cut ----

    def take_snapshot(self, cache: Any, row: int | None, length: int) -> list[mx.array]:
        """Return the arrays of a single cache, or of one row, after `length` tokens. They need not be copies."""
        raise NotImplementedError

    def restore_snapshot(self, cache: Any, arrays: list[mx.array], length: int) -> None:
        """Restore a single cache from a snapshot of `length` tokens at the front of `arrays`, removing it there."""
        raise NotImplementedError


def part_shape(array: mx.array) -> PartShape:
    """Return the shape of one token in an array [rows, heads, tokens, dim]."""
    return PartShape(num_heads=array.shape[1], dim=array.shape[3], itemsize=array.itemsize)


def of_row(array: mx.array, row: int | None) -> mx.array:
    """Return one row of an array of rows, or the whole array of a single cache if `row` is None."""
    return array if row is None else array[row : row + 1]
