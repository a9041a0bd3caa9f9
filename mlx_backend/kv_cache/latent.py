"""The latent of multi-head latent attention (DeepSeek), held in mlx-lm's KVCache.

Its keys are the compressed keys and values of all heads; its values are the rotary part of the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_backend.kv_cache.codec import ColumnForm
from mlx_backend.kv_cache.plain import PlainHandler
from mlx_backend.kv_cache.plan import CacheShape


class LatentHandler(PlainHandler):
    """Handler of latents, which are held like plain keys and values and identified by the model's config."""

    column_forms: tuple[ColumnForm, ColumnForm] = ("quantized-in-decode", "array")
    """Latent attention itself expands a chunk's latents and multiplies the rotary part."""

    def read_shape(self, kind: str, cache: Any, config: Mapping[str, Any]) -> CacheShape | None:
        if cache.keys is None or cache.keys.shape[1] != 1:
            return None
        latent = (config.get("kv_lora_rank"), config.get("qk_rope_head_dim"))
        is_latent = (cache.keys.shape[3], cache.values.shape[3]) == latent
        return super().read_shape(kind, cache, config) if is_latent else None


HANDLER = LatentHandler()
