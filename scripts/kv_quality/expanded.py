"""The pocket model with its keys and values expanded, as grouped-query attention keeps them. The same function.

Latent attention caches one vector for keys and values, so key bits and value bits cannot be measured separately on it.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models import deepseek_v3

_GROUP = 32


class ExpandedAttention(deepseek_v3.DeepseekV3Attention):  # type: ignore[misc]
    """Attention that caches [rows, heads, tokens, dim] keys and values; values are zero-padded to whole groups."""

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        rows, tokens, _ = x.shape
        q = self.q_proj(x).reshape(rows, tokens, self.num_heads, self.q_head_dim).transpose(0, 2, 1, 3)
        q_nope, q_rope = mx.split(q, [self.qk_nope_head_dim], axis=-1)
        latent, k_rope = mx.split(self.kv_a_proj_with_mqa(x), [self.kv_lora_rank], axis=-1)
        latent = self.kv_a_layernorm(latent)[:, None]
        k_rope = self.rope(k_rope[:, None], cache.offset)
        keys = self.embed_q(latent, transpose=False)
        values = self.unembed_out(latent)
        keys = mx.concatenate([keys, mx.broadcast_to(k_rope, (*keys.shape[:3], k_rope.shape[-1]))], axis=-1)
        values = mx.pad(values, [(0, 0)] * 3 + [(0, -self.v_head_dim % _GROUP)])
        keys, values = cache.update_and_fetch(keys, values)
        queries = mx.concatenate([q_nope, self.rope(q_rope, cache.offset - tokens)], axis=-1)
        out = deepseek_v3.scaled_dot_product_attention(queries, keys, values, cache=cache, scale=self.scale, mask=mask)
        out = out[..., : self.v_head_dim].transpose(0, 2, 1, 3).reshape(rows, tokens, -1)
        return self.o_proj(out)


def expand(model: Any) -> None:
    """Make every layer of a model of DeepSeek V3's architecture cache keys and values."""
    for layer in model.layers:
        layer.self_attn.__class__ = ExpandedAttention
