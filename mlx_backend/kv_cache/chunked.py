"""Attention in chunks of positions (Llama 4), in mlx-lm's ChunkedKVCache: counted; neither batched nor quantized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_backend.kv_cache.handler import CacheHandler, part_shape
from mlx_backend.kv_cache.plan import CacheShape


class ChunkedHandler(CacheHandler):
    """Handler of ChunkedKVCache, which reads shapes only."""

    def read_shape(self, kind: str, cache: Any, config: Mapping[str, Any]) -> CacheShape:
        if cache.keys is None:
            return CacheShape(kind)
        window = cache.chunk_size + cache.step  # one more step is allocated as it moves on
        return CacheShape(kind, part_shape(cache.keys), part_shape(cache.values), window=window)


HANDLER = ChunkedHandler()
