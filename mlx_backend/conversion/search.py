"""Scales by search: for each group, the scale and bias with the least squared error, instead of the group's range.

Ranges that are shrunk by several factors are tried; from each, rounding to codes and a least-squares fit of scale and
bias alternate a few times. MLX's result for the whole range is among the candidates, so that no group is worse than by
range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlx_backend.conversion.quantizing import nearest
from mlx_backend.conversion.spec import Spec

_SHRINKS = (0.95, 0.8, 0.65)
_STEPS = 4
"""With seven ranges and six steps the error is 2 to 3 % less, and the search takes four times as long."""
_CHUNK_WEIGHTS = 1 << 22
"""Number of weights searched at a time: temporaries are some ten times as large, in float32."""


def _compiled(function: Any) -> Any:
    """Fuse a function's operations into one kernel, on a GPU; on a CPU that costs time and gains nothing."""
    return mx.compile(function) if mx.default_device().type == mx.DeviceType.gpu else function


def searched(weight: mx.array, spec: Spec) -> Sequence[mx.array]:
    """Quantize in MLX's format with searched scales; in modes other than affine, and at 8 bits, as MLX does."""
    if spec.mode != "affine" or spec.bits >= 8:
        return nearest(weight, spec)
    rows = weight.reshape(-1, weight.shape[-1])
    step = max(1, _CHUNK_WEIGHTS // weight.shape[-1])
    found = []
    for start in range(0, rows.shape[0], step):
        found.append(_searched_rows(rows[start : start + step], spec))
        mx.eval(found[-1])
    made = (mx.concatenate([part[place] for part in found]) for place in range(3))
    return tuple(array.reshape(*weight.shape[:-1], -1) for array in made)


def _searched_rows(rows: mx.array, spec: Spec) -> tuple[mx.array, mx.array, mx.array]:
    """Return packed codes, scales and biases of rows [n, width]."""
    _, scales, biases = nearest(rows, spec)
    flat = (scales.reshape(-1, 1), biases.reshape(-1, 1))
    codes, *new = search_groups(rows.reshape(-1, spec.group_size), *flat, 2**spec.bits - 1)
    return pack(codes.reshape(rows.shape), spec.bits), new[0].reshape(scales.shape), new[1].reshape(biases.shape)


def search_groups(
    groups: mx.array, scale: mx.array, bias: mx.array, most: int, importance: mx.array | None = None
) -> tuple[mx.array, mx.array, mx.array]:
    """Return codes, scales and biases of groups [n, group size]; `scale`, `bias`: those by range.

    `importance`: weights of the numbers' squared errors, in the groups' shape; their mean in a group is 1.
    """
    top = mx.array(float(most))
    x = groups.astype(mx.float32)
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)

    def summed(each: mx.array) -> mx.array:
        return (each if importance is None else each * importance).sum(-1, keepdims=True)

    mean = summed(x) / x.shape[-1]
    error = summed(_errors(x, *_wide(scale, bias), top))
    for shrink in _SHRINKS:
        a, b = _shrunk(low, high, top, mx.array(shrink))
        for _ in range(_STEPS):
            codes = _codes(x, a, b, top)
            products, squares = _products(codes, x)
            a, b = _fitted(a, mean, summed(codes), summed(products), summed(squares), x.shape[-1])
        a, b = a.astype(scale.dtype), b.astype(scale.dtype)
        new = summed(_errors(x, *_wide(a, b), top))
        scale, bias, error = _better(new, error, a, scale, b, bias)
    return _codes(x, *_wide(scale, bias), top).astype(mx.uint8), scale, bias


@_compiled
def _codes(x: mx.array, scale: mx.array, bias: mx.array, top: mx.array) -> mx.array:
    return mx.minimum(mx.maximum(mx.round((x - bias) / scale), 0.0), top)


@_compiled
def _products(codes: mx.array, x: mx.array) -> tuple[mx.array, mx.array]:
    return codes * x, codes * codes


@_compiled
def _errors(x: mx.array, scale: mx.array, bias: mx.array, top: mx.array) -> mx.array:
    codes = mx.minimum(mx.maximum(mx.round((x - bias) / scale), 0.0), top)
    return mx.square(x - codes * scale - bias)


@_compiled
def _shrunk(low: mx.array, high: mx.array, top: mx.array, shrink: mx.array) -> tuple[mx.array, mx.array]:
    middle, half = (low + high) / 2, (high - low) / 2
    return mx.maximum(2 * half * shrink / top, 1e-12), middle - half * shrink


@_compiled
def _fitted(scale: Any, mean: Any, total: Any, products: Any, squares: Any, size: int) -> tuple[Any, Any]:
    """Return scale and bias by least squares, from sums over each group of codes, code x number, and code x code."""
    variance = squares - total * total / size
    slope = (products - mean * total) / mx.maximum(variance, 1e-12)
    scale = mx.where((variance > 1e-6) & (slope > 1e-9), slope, scale)
    return scale, mean - scale * total / size


@_compiled
def _better(new: Any, error: Any, a: Any, scale: Any, b: Any, bias: Any) -> tuple[Any, Any, Any]:
    is_less = new < error
    return mx.where(is_less, a, scale), mx.where(is_less, b, bias), mx.where(is_less, new, error)


def _wide(scale: mx.array, bias: mx.array) -> tuple[mx.array, mx.array]:
    """Return both in float32; a zero scale (a group of equal numbers) is replaced by one that divides."""
    wide = scale.astype(mx.float32)
    return mx.where(wide == 0, 1e-12, wide), bias.astype(mx.float32)


def pack(codes: mx.array, bits: int) -> mx.array:
    """Return codes [..., n] as MLX packs them: bit after bit, the lowest first, into words of 32."""
    whole = codes.astype(mx.uint32)
    per_block = 32  # codes that fill `bits` words exactly
    blocks = whole.reshape(*whole.shape[:-1], -1, per_block)
    words = []
    for word in range(bits):
        made = None
        for place in range(per_block):
            at = place * bits - 32 * word
            if -bits < at < 32:
                code = blocks[..., place]
                part = code << at if at >= 0 else code >> -at
                made = part if made is None else made | part
        words.append(made)
    return mx.stack(words, axis=-1).reshape(*codes.shape[:-1], -1)
