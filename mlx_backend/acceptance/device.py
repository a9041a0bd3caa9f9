"""The device that MLX computes on: its information, and one product on it."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from mlx_backend.acceptance.checks import Check, Options, Outcome

_SIZE = 256


def run(options: Options, report: Callable[[str], None]) -> Outcome:
    """Report `mx.device_info()` and the default device, and check a product against the CPU's."""
    one = mx.random.uniform(shape=(_SIZE, _SIZE), key=mx.random.key(0))
    here = one @ one
    there = mx.matmul(one, one, stream=mx.cpu)
    error = float(mx.max(mx.abs(here - there) / mx.abs(there)).item())
    figures = {
        "device": str(mx.default_device()),
        "has_metal": bool(mx.metal.is_available()),
        "info": {name: value for name, value in mx.device_info().items() if isinstance(value, str | int | float)},
        "mlx": mx.__version__,
    }
    return Outcome(
        figures=figures, checks=[Check(name="a product, beside the CPU's", measured=error, high=1e-2, unit="relative")]
    )
