"""Codes by compensation (GPTQ): later columns compensate for what rounding one column changes in the layer's output.

Columns are rounded from the first to the last. The error of each, weighted by the Hessian of the layer's inputs, is
spread over the remaining ones; the scale and bias of a group are searched when its first column is reached.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_backend.conversion.quantizing import nearest
from mlx_backend.conversion.search import pack, search_groups, searched
from mlx_backend.conversion.spec import Spec

_DAMPING = 0.01
"""Share of the mean of a Hessian's diagonal that is added to it: inputs rare in calibration count a little, too."""
MOST_BITS = 6
"""With more bits, rounding leaves nothing to compensate for."""


def compensated(weight: mx.array, spec: Spec, hessian: mx.array) -> Sequence[mx.array]:
    """Quantize a weight [..., out, in] in MLX's affine format; `hessian`: that of its inputs, [..., in, in].

    The result of a plain search is taken if its error is less.
    """
    plain = searched(weight, spec)
    if spec.mode != "affine" or spec.bits > MOST_BITS:
        return plain
    stacked = weight.reshape(-1, *weight.shape[-2:])
    made = _compensated(stacked, spec, hessian.reshape(-1, *hessian.shape[-2:]))
    found = tuple(each.reshape(*weight.shape[:-1], -1) for each in made)
    mx.eval(found)
    is_less = output_error(weight, found, spec, hessian) < output_error(weight, plain, spec, hessian)
    return found if is_less else plain


def output_error(weight: mx.array, made: Sequence[mx.array], spec: Spec, hessian: mx.array | None) -> float:
    """Return the mean squared error of the layer's outputs; without a Hessian, of its weights."""
    back = mx.dequantize(*made, group_size=spec.group_size, bits=spec.bits, mode=spec.mode, dtype=mx.float32)
    change = back - weight.astype(mx.float32)
    return float((mx.square(change) if hessian is None else (change @ hessian) * change).mean().item())


def _factors(hessians: mx.array) -> mx.array:
    """Return the upper Cholesky factor of each damped Hessian's inverse."""
    width = hessians.shape[-1]
    mean = mx.diagonal(hessians, axis1=-2, axis2=-1).mean(-1)[:, None, None]
    damped = hessians + (_DAMPING * mean + 1e-8) * mx.eye(width)
    lower = mx.linalg.cholesky(damped, stream=mx.cpu)
    inverse = mx.linalg.cholesky_inv(lower, stream=mx.cpu)
    factors = mx.linalg.cholesky(inverse, upper=True, stream=mx.cpu)
    mx.eval(factors)
    return factors


def _compensated(weight: mx.array, spec: Spec, hessians: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Return packed codes, scales and biases of weights [parts, out, in]; `hessians`: [1 or parts, in, in]."""
    top, size = 2**spec.bits - 1, spec.group_size
    factors = _factors(hessians)
    diagonal = mx.diagonal(hessians, axis1=-2, axis2=-1)
    left = weight.astype(mx.float32)
    codes, scales, biases = [], [], []
    for start in range(0, weight.shape[-1], size):
        block = left[..., :size]
        _, scale, bias = nearest(block.astype(weight.dtype), spec)
        groups, *given = (each.reshape(-1, each.shape[-1]) for each in (block, scale, bias))
        importance = _importance(diagonal[:, start : start + size], block.shape)
        _, scale, bias = search_groups(groups, given[0], given[1], top, importance)
        scale, bias = (each.reshape(*block.shape[:-1], 1) for each in (scale, bias))
        own = factors[:, start : start + size, start:]
        found, errors = _round_columns(block, scale, bias, own, top)
        left = left[..., size:] - errors @ own[..., size:]
        codes.append(found)
        scales.append(scale)
        biases.append(bias)
        mx.eval(left, found, scale, bias)
    return pack(mx.concatenate(codes, axis=-1), spec.bits), *(
        mx.concatenate(each, axis=-1) for each in (scales, biases)
    )


def _importance(diagonal: mx.array, shape: tuple[int, ...]) -> mx.array:
    """Return the weight of each number of a block [parts, out, group size], by the mean square of its inputs."""
    raised = diagonal + _DAMPING * diagonal.mean(-1, keepdims=True) + 1e-12
    scaled = raised / raised.mean(-1, keepdims=True)
    return mx.broadcast_to(scaled[:, None], shape).reshape(-1, shape[-1])


def _round_columns(
    block: mx.array, scale: mx.array, bias: mx.array, factors: mx.array, top: int
) -> tuple[mx.array, mx.array]:
    """Return codes of one group's columns, and the errors that are left for the columns after it."""
    wide, low = scale[..., 0].astype(mx.float32), bias[..., 0].astype(mx.float32)
    wide = mx.where(wide == 0, 1e-12, wide)
    codes, errors = [], []
    for column in range(block.shape[-1]):
        value = block[..., column]
        code = mx.minimum(mx.maximum(mx.round((value - low) / wide), 0.0), float(top))
        error = (value - code * wide - low) / factors[:, column, column, None]
        block = block - error[..., None] * factors[:, None, column, : block.shape[-1]]
        codes.append(code.astype(mx.uint8))
        errors.append(error)
        if column % 16 == 15:
            mx.eval(block)
    return mx.stack(codes, axis=-1), mx.stack(errors, axis=-1)
