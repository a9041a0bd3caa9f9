"""CacheHandler: what the module of a KV-cache kind provides, beside the kind's row in `spec`.

A `cache` is either a single cache, which holds one sequence and is of one of the row's `cache_classes`, or the rows
that `build_rows` made of one. Arrays of the rows have the batch as their first axis, those of a single cache 1.
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

    Each is [rows, heads, tokens, …], a column per position.
    """

    num_arrays: int
    first: int = 0
    end: int | None = None


class CacheHandler:
    """Handles the caches of one kind, and keeps nothing of its own. A kind overrides what its row claims."""

    column_forms: tuple[ColumnForm, ColumnForm] = ("quantized", "quantized")
    """The forms in which attention takes quantized keys, and values."""

    # ---- every kind ----

    def read_shape(self, kind: str, cache: Any, config: Mapping[str, Any]) -> CacheShape | None:
        """The shape of a single cache that a forward pass was built with; None where it is of another kind.

        `kind`: the row's name. `config`: the model's. Nothing is computed: the arrays have their shapes before.
        """
        raise NotImplementedError

    # ---- is_batched, and build_rows where it is no state ----

    def unbatched_reason(self, cache: Any) -> str | None:
        """The reason why this cache cannot be batched although its kind can; None where it can."""
        return None

    def build_rows(self, cache: Any, lengths: RowLengths) -> Rows:
        """Build a cache without rows yet, for such single caches as `cache`, which is empty."""
        raise NotImplementedError

    # ---- is_batched and is_state ----

    def build_states(self, cache: Any, positions: Positions) -> States:
        """Build a cache without rows yet, for such single caches as `cache`, which is empty."""
        raise NotImplementedError

    # ---- is_quantizable ----

    def build_quantized(self, plan: CachePlan, keys: Codec, values: Codec) -> Any:
        """An empty single cache that holds keys and values in these codecs."""
        raise NotImplementedError

    # ---- is_cut ----

    def segments(self, plan: CachePlan) -> list[Segment]:
        """The segments into which positions are divided."""
        raise NotImplementedError

    def segment_arrays(self, cache: Any) -> list[list[mx.array]]:
        """The arrays of every segment, as they are held. Of an empty single cache they may be None or missing."""
        raise NotImplementedError

    def set_array(self, cache: Any, segment: int, place: int, array: mx.array) -> None:
        """Replace one array of a single cache, or append it where there are only `place` of them yet."""
        raise NotImplementedError

    def set_length(self, cache: Any, length: int) -> None:
        """Tell a single cache that the arrays it was given hold `length` tokens."""
        raise NotImplementedError

    # ---- not is_cut ----

    def take_snapshot(self, cache: Any, row: int | None, length: int) -> list[mx.array]:
        """The arrays of a single cache, or of one row, as they are after `length` tokens. They need not be copies."""
        raise NotImplementedError

    def restore_snapshot(self, cache: Any, arrays: list[mx.array], length: int) -> None:
        """Take a snapshot of `length` tokens from the front of `arrays` into a single cache."""
        raise NotImplementedError


def part_shape(array: mx.array) -> PartShape:
    """The shape of one token in an array [rows, heads, tokens, dim]."""
    return PartShape(num_heads=array.shape[1], dim=array.shape[3], itemsize=array.itemsize)


def of_row(array: mx.array, row: int | None) -> mx.array:
    """One row of an array of rows; the whole of a single cache's, where `row` is None."""
    return array if row is None else array[row : row + 1]
