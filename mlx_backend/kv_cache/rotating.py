"""RingRows: the keys and values of sliding-window attention, a ring of `width` columns per row.

The token at position p is in column p % width. Attention does not care for the order of its columns:
rotary positions are in the keys already.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_backend.kv_cache.codec import FULL, Codec
from mlx_backend.kv_cache.plain import PlainRows
from mlx_backend.kv_cache.quantized import QuantizedKV
from mlx_backend.kv_cache.rows import Lengths


class RingRows(PlainRows):
    """As PlainRows, in at most `width` columns."""

    width: int

    def __init__(self, lengths: Lengths, width: int, keys: Codec = FULL, values: Codec = FULL) -> None:
        super().__init__(lengths, keys, values, limit=width)
        self.width = width

    def _columns(self, num_tokens: int) -> int:
        return min(num_tokens, self.width)

    def _adopt(self, single: Any) -> bool:
        return False  # mlx-lm's cache has its own order, and after a chunk it is longer than the window

    def _content(self, single: Any, length: int) -> list[mx.array]:
        if isinstance(single, QuantizedKV):
            return single.content(length)
        kept = min(length, self.width)
        # `_temporal_order` is RotatingKVCache's own undoing of its rotation
        return [single._temporal_order(part)[..., -kept:, :] for part in (single.keys, single.values)]

    def _spans(self, length: int, num_kept: int) -> list[tuple[int, int, int]]:
        first = (length - num_kept) % self.width
        before_wrap = min(num_kept, self.width - first)
        spans = [(0, before_wrap, first), (before_wrap, num_kept, 0)]
        return [span for span in spans if span[0] < span[1]]
