"""Attention over quantized columns: a few tokens per row without dequantizing, chunks through the fused kernel.

mlx-lm's models call the `scaled_dot_product_attention` of `mlx_lm.models.base`, which takes arrays, or one cache's
quantized tuples in mlx-lm's own format without sinks. `install` replaces it with `attend`; the models stay unchanged.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm.models import base

from mlx_backend.kv_cache import latent_attention
from mlx_backend.kv_cache.codec import Part, QuantizedColumns
from mlx_backend.kv_cache.groups import GroupedColumns, GroupedMask

_MAX_SHADOW_BYTES = 64 << 20
"""Bytes that a chunk's attention may take at once for dequantized keys and values and, without a fused kernel, for
scores. Beyond it, attention runs over some heads at a time."""
_NAME = "scaled_dot_product_attention"
_attend_arrays = base.scaled_dot_product_attention


def install() -> None:
    """Make every model of mlx-lm, imported now or later, call `attend`. Calls with arrays are unaffected."""
    for name, module in sys.modules.copy().items():  # a copy: other threads import meanwhile
        if name.startswith("mlx_lm.models.") and getattr(module, _NAME, None) is _attend_arrays:
            setattr(module, _NAME, attend)


def attend(
    queries: mx.array,
    keys: Part | GroupedColumns | latent_attention.Deferred,
    values: Part | GroupedColumns | latent_attention.Deferred,
    cache: Any,
    scale: float,
    mask: mx.array | str | GroupedMask | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """Compute attention, [rows, heads, n, dim], of queries with the same shape.

    keys and values: [rows, kv heads, tokens, dim]. mask: bool or additive, broadcastable to [rows, heads, n, tokens],
    or "causal". sinks: [heads]. Latents may come deferred (latent_attention). For rows in groups, keys, values and mask
    hold one part per group.
    """
    if isinstance(keys, GroupedColumns):
        return _attend_groups(queries, keys, values, scale, mask, sinks)
    if isinstance(keys, latent_attention.Deferred):
        return latent_attention.attend(queries, keys, values, scale, mask)
    if isinstance(keys, mx.array) and isinstance(values, mx.array):
        out: mx.array = _attend_arrays(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)
        return out
    if queries.shape[2] == 1 and not isinstance(mask, str):
        return _attend_few(queries, keys, values, scale, mask, sinks)
    return _attend_chunk(queries, keys, values, scale, mask, sinks)


def _attend_groups(
    queries: mx.array, keys: GroupedColumns, values: Any, scale: float, mask: Any, sinks: mx.array | None
) -> mx.array:
    """Attend with each group's rows to its own columns; raise TypeError if a model made its own mask or values."""
    if not isinstance(values, GroupedColumns) or not isinstance(mask, GroupedMask | None):
        raise TypeError("rows in groups need the values, and the mask, that their cache made")
    masks = (None,) * len(keys.parts) if mask is None else mask.parts
    outs = [
        group.unfold(_attend_rows(group.fold(group.of(queries)), key, value, scale, own, sinks))
        for group, key, value, own in zip(keys.groups, keys.parts, values.parts, masks, strict=True)
    ]
    return mx.concatenate(outs)


def _attend_rows(
    queries: mx.array, keys: Any, values: Any, scale: float, mask: Any, sinks: mx.array | None
) -> mx.array:
    """Attend with one group's rows: one token each, or the few of a step with drafts."""
    if isinstance(keys, QuantizedColumns) or isinstance(values, QuantizedColumns):
        return _attend_few(queries, keys, values, scale, mask, sinks)
    return attend(queries, keys, values, None, scale, mask, sinks)


def _attend_few(
    queries: mx.array, keys: Part, values: Part, scale: float, mask: mx.array | None, sinks: mx.array | None
) -> mx.array:
    """Attend with a few tokens per row to the quantized columns, which are read once and never written out."""
    rows, heads, num_tokens, dim = queries.shape
    kv_heads = keys.shape[1]
    grouped = (rows, kv_heads, heads // kv_heads, num_tokens)
    flat = (rows, kv_heads, heads // kv_heads * num_tokens)
    # Products of float32 are by far the fastest on a CPU, whatever the cache holds; elsewhere use the model's dtype.
    dtype = mx.float32 if _is_on_cpu() else queries.dtype
    scores = _transposed_product(keys, (queries * scale).astype(dtype).reshape(*flat, dim)).reshape(*grouped, -1)
    if mask is not None:
        scores = _masked(scores, _grouped(mask, grouped))
    weights = _softmax(scores, None if sinks is None else sinks.astype(dtype).reshape(1, *grouped[1:3], 1, 1))
    out = _product(values, weights.reshape(*flat, -1)).astype(queries.dtype)
    return out.reshape(rows, heads, num_tokens, out.shape[-1])


def _is_on_cpu() -> bool:
    return bool(mx.default_device() == mx.Device(mx.cpu))


def _grouped(mask: mx.array, grouped: tuple[int, int, int, int]) -> mx.array:
    """Reshape […, heads or 1, n, tokens] to broadcast over [rows, kv heads, heads per kv head, n, tokens]."""
    if mask.ndim == 4 and mask.shape[1] > 1:
        return mask.reshape(mask.shape[0], *grouped[1:3], *mask.shape[2:])
    return mask[:, :, None] if mask.ndim == 4 else mask


def _masked(scores: mx.array, mask: mx.array) -> mx.array:
    if mask.dtype == mx.bool_:
        return mx.where(mask, scores, mx.array(mx.finfo(scores.dtype).min, scores.dtype))
    return scores + mask.astype(scores.dtype)


def _softmax(scores: mx.array, sinks: mx.array | None) -> mx.array:
    """Compute softmax over the last axis; a sink takes its share of the weight and contributes nothing."""
    if sinks is None:
        return mx.softmax(scores, axis=-1, precise=True)
    top = mx.maximum(scores.max(axis=-1, keepdims=True), sinks)
    weights = mx.exp(scores - top)
    return weights / (weights.sum(axis=-1, keepdims=True) + mx.exp(sinks - top))


def _transposed_product(part: Part, x: mx.array) -> mx.array:
    if isinstance(part, QuantizedColumns):
        return part.transposed_product(x)
    return x @ part.astype(x.dtype).swapaxes(-1, -2)


def _product(part: Part, x: mx.array) -> mx.array:
    return part.product(x) if isinstance(part, QuantizedColumns) else x @ part.astype(x.dtype)


def _attend_chunk(
    queries: mx.array, keys: Part, values: Part, scale: float, mask: mx.array | str | None, sinks: mx.array | None
) -> mx.array:
    """Attend with many tokens per row, which all read one dequantized copy; the fused kernel keeps no score matrix."""
    heads, kv_heads = queries.shape[1], keys.shape[1]
    shadow = sum(math.prod(part.shape) for part in (keys, values)) * queries.itemsize
    if _is_on_cpu():
        shadow += math.prod(queries.shape[:3]) * keys.shape[2] * queries.itemsize
    step = max(1, kv_heads // max(1, -(-shadow // _MAX_SHADOW_BYTES)))
    outs: list[mx.array] = []
    for start in range(0, kv_heads, step):
        some = slice(start, start + step)
        some_queries = slice(start * heads // kv_heads, (start + step) * heads // kv_heads)
        outs.append(
            mx.fast.scaled_dot_product_attention(
                queries[:, some_queries],
                _dequantized(_after(keys, outs[-1:]), some, queries.dtype),
                _dequantized(_after(values, outs[-1:]), some, queries.dtype),
                scale=scale,
                mask=mask[:, some_queries] if isinstance(mask, mx.array) and _has_heads(mask) else mask,
                sinks=None if sinks is None else sinks[some_queries],
            )
        )
    return outs[0] if len(outs) == 1 else mx.concatenate(outs, axis=1)


def _after(part: Part, outs: list[mx.array]) -> Part:
    """Return the same part, dequantized only after `outs`: otherwise all heads' copies would be made before any use.

    Nothing is copied and nothing is waited for: the graph holds the order.
    """
    if not outs or not isinstance(part, QuantizedColumns):
        return part
    packed, scales, biases = mx.depends(list(part.arrays), outs)
    return replace(part, arrays=(packed, scales, biases))


def _has_heads(mask: mx.array) -> bool:
    return bool(mask.ndim == 4 and mask.shape[1] > 1)


def _dequantized(part: Part, heads: slice, dtype: mx.Dtype) -> mx.array:
    array = part.dequantize(heads) if isinstance(part, QuantizedColumns) else part[:, heads]
    return array.astype(dtype)
