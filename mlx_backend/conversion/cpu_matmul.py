"""Linear layers on a CPU: numpy's BLAS multiplies float32 there, some ten times as fast as MLX does.

For measurements only. Quantized layers do not change.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.switch_layers import SwitchLinear


def use_numpy(model: Any) -> None:
    """Have the linear layers of a float32 model computed by numpy."""
    kinds = {nn.Linear: _Linear, SwitchLinear: _SwitchLinear}
    for module in model.modules():
        if kind := kinds.get(type(module)):
            module.__class__ = kind


def _product(x: mx.array, weight: mx.array) -> mx.array:
    """Return x [..., in] times weight [out, in], transposed."""
    rows = np.asarray(x.reshape(-1, x.shape[-1]))
    return mx.array(rows @ np.asarray(weight).T).reshape(*x.shape[:-1], -1)


class _Linear(nn.Linear):  # type: ignore[misc]
    def __call__(self, x: mx.array) -> mx.array:
        made = _product(x, self.weight)
        return made + self.bias if "bias" in self else made


class _SwitchLinear(SwitchLinear):  # type: ignore[misc]
    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        width, chosen = x.shape[-1], np.asarray(indices).reshape(-1)
        rows = np.asarray(mx.broadcast_to(x, (*indices.shape, 1, width))).reshape(-1, width)
        weight = np.asarray(self.weight)
        made = np.empty((rows.shape[0], weight.shape[1]), np.float32)
        for expert in np.unique(chosen):
            own = chosen == expert
            made[own] = rows[own] @ weight[expert].T
        out = mx.array(made).reshape(*indices.shape, 1, -1)
        return out + mx.expand_dims(self.bias[indices], -2) if "bias" in self else out
