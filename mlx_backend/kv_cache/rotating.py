"""Keys and values of the last tokens, for sliding-window attention, in mlx-lm's RotatingKVCache.

QuantizedWindow holds them quantized, for one sequence; RingRows holds the rows of either in a ring.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import RotatingKVCache, create_causal_mask

from mlx_backend.kv_cache.codec import FULL, Codec
from mlx_backend.kv_cache.handler import CacheHandler, of_row, part_shape
from mlx_backend.kv_cache.plain import PlainRows
from mlx_backend.kv_cache.plan import CachePlan, CacheShape
from mlx_backend.kv_cache.quantized import QuantizedKV
from mlx_backend.kv_cache.rows import RowLengths, Rows


class QuantizedWindow(QuantizedKV):
    """QuantizedKV of at most `window` columns, in the order of their positions.

    A chunk attends to at most window - 1 columns before it.
    """

    def __init__(self, keys: Codec, values: Codec, window: int) -> None:
        super().__init__(keys, values)
        self.window = window

    def make_mask(self, num_tokens: int, return_array: bool = False, window_size: int | None = None) -> Any:
        before, window = min(self.window - 1, self.offset), window_size or self.window
        if num_tokens == 1:
            return None if before < window else mx.arange(before + 1) > before - window
        if before + num_tokens > window or return_array:
            return create_causal_mask(num_tokens, before, window_size=window)
        return "causal"

    def content(self, length: int) -> list[mx.array]:
        return [array[:, :, -self.window :] for array in self.arrays]

    def _extend(self, new: list[mx.array], num_new: int) -> list[mx.array]:
        columns, window = new, self.window
        if self.arrays:
            kept = [array[:, :, max(0, array.shape[2] - window + 1) :] for array in self.arrays]
            columns = [mx.concatenate(pair, axis=2) for pair in zip(kept, new, strict=True)]
        # A slice would keep all of the chunk's columns alive.
        self.arrays = [mx.contiguous(array[:, :, -window:]) if array.shape[2] > window else array for array in columns]
        return columns

    def _empty(self) -> QuantizedWindow:
        return QuantizedWindow(*self.codecs, self.window)


class RingRows(PlainRows):
    """PlainRows of at most `width` columns: the token at position p is in column p % width.

    Attention does not depend on the order of its columns: the keys already contain rotary positions. `width` is the
    window plus one column for every draft of a step, so a refused draft has overwritten nothing that is needed.
    """

    width: int

    def __init__(self, lengths: RowLengths, window: int, keys: Codec = FULL, values: Codec = FULL) -> None:
        super().__init__(lengths, keys, values, limit=window + lengths.max_drafts)
        self._window = window
        self.width = window + lengths.max_drafts

    def make_mask(self, num_tokens: int, return_array: bool = False, window_size: int | None = None) -> mx.array | None:
        return super().make_mask(num_tokens, return_array, min(window_size or self._window, self._window))

    def _columns(self, num_tokens: int) -> int:
        return min(num_tokens, self.width)

    def _adopt(self, single: Any) -> bool:
        return False  # mlx-lm's cache has its own order, and after a chunk it is longer than the window

    def _content(self, single: Any, length: int) -> list[mx.array]:
        return _content(single, length)

    def unrolled(self, row: int | None, length: int) -> list[mx.array]:
        """Return the arrays of a row that holds `length` tokens, in the order of their positions."""
        spans = self._spans(length, min(length, self._window))
        held = [of_row(array, row) for array in self.arrays]
        return [mx.concatenate([array[:, :, at : at + b - a] for a, b, at in spans], axis=2) for array in held]

    def _spans(self, length: int, num_kept: int) -> list[tuple[int, int, int]]:
        first = (length - num_kept) % self.width
        before_wrap = min(num_kept, self.width - first)
        spans = [(0, before_wrap, first), (before_wrap, num_kept, 0)]
        return [span for span in spans if span[0] < span[1]]


def _content(single: Any, length: int) -> list[mx.array]:
    """Return the arrays of a single cache that holds `length` tokens: its window, in the order of positions."""
    if isinstance(single, QuantizedWindow):
        return single.content(length)
    kept = min(length, single.max_size)
    # `_temporal_order` is RotatingKVCache's method to undo its rotation
    return [single._temporal_order(part)[..., -kept:, :] for part in (single.keys, single.values)]


class WindowHandler(CacheHandler):
    """Handler of mlx-lm's RotatingKVCache, QuantizedWindow, and their rows. Not cut: tokens that left are lost."""

    def read_shape(self, kind: str, cache: Any, config: Mapping[str, Any]) -> CacheShape:
        if cache.keys is None:
            return CacheShape(kind)
        return CacheShape(kind, part_shape(cache.keys), part_shape(cache.values), window=cache.max_size)

    def unbatched_reason(self, cache: Any) -> str | None:
        keep = getattr(cache, "keep", 0)
        return f"its sliding-window cache keeps the first {keep} tokens, which cannot be batched" if keep else None

    def build_rows(self, cache: Any, lengths: RowLengths) -> Rows:
        if isinstance(cache, QuantizedWindow):
            return RingRows(lengths, cache.window, *cache.codecs)
        return RingRows(lengths, cache.max_size)

    def build_quantized(self, plan: CachePlan, keys: Codec, values: Codec) -> QuantizedWindow:
        assert plan.shape.window is not None, "a sliding window has a size"
        return QuantizedWindow(keys, values, plan.shape.window)

    def take_snapshot(self, cache: Any, row: int | None, length: int) -> list[mx.array]:
        return cache.unrolled(row, length) if isinstance(cache, RingRows) else _content(cache, length)

    def restore_snapshot(self, cache: Any, arrays: list[mx.array], length: int) -> None:
        if isinstance(cache, RotatingKVCache):
            cache.keys, cache.values = arrays.pop(0), arrays.pop(0)
            cache._idx = cache.keys.shape[2]
        else:
            num_arrays = sum(codec.num_arrays for codec in cache.codecs)
            cache.arrays = [arrays.pop(0) for _ in range(num_arrays)]
        cache.offset = length


HANDLER = WindowHandler()
