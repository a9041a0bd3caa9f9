"""How much each weight loses by each format: measured on samples of the weights, where the model is not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from mlx_backend.conversion.allocation import Option
from mlx_backend.conversion.options import allowed, options_of
from mlx_backend.conversion.quantizing import unpacker
from mlx_backend.conversion.search import searched
from mlx_backend.conversion.source import DTYPES, Module, Source
from mlx_backend.conversion.spec import Spec

_SAMPLE_WEIGHTS = 1 << 16
_SAMPLE_PARTS = 2
"""Of a stack, such as a layer's experts."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Options of each weight, and what all other tensors take."""

    options: Mapping[str, tuple[Option, ...]]
    fixed_bytes: int


def sampled_options(source: Source) -> Sampled:
    """Measure the options of all weights of a source, and use it up. Raises ConversionError."""
    options = {}
    fixed = sum(each.num_weights * each.dtype.size for each in source.weights.values())
    for module in source.modules.values():
        names = [f"{module.path}.{name}" for name in ("weight", "scales", "biases", "global_scale")]
        held = [source.weights[name] for name in names if name in source.weights]
        fixed -= sum(each.num_weights * each.dtype.size for each in held)
        like = source.weights[names[1 if module.spec is not None else 0]].dtype
        dtype = DTYPES[like] if like.size > 1 else "BF16"
        itemsize = like.size if like.size > 1 else 2
        specs = (
            (module.spec,)
            if module.has_global_scale
            else allowed(module.candidate, is_measured=False, most=module.spec)
        )
        losses = _losses(source, module, specs)
        options[module.path] = options_of(module.shape, dtype, itemsize, losses)
    return Sampled(options, fixed)


def _losses(source: Source, module: Module, specs: tuple[Spec | None, ...]) -> dict[Spec | None, float]:
    """The relative squared error of each format on a sample; 0 for the one that the source has."""
    rows = _sample(source, module)
    whole = mx.square(rows).sum().item()
    losses: dict[Spec | None, float] = {}
    for spec in specs:
        if spec is None or spec == module.spec or whole == 0:
            losses[spec] = 0.0
            continue
        made = searched(rows, spec)
        back = mx.dequantize(*made, group_size=spec.group_size, bits=spec.bits, mode=spec.mode)
        losses[spec] = mx.square(back - rows).sum().item() / whole
    return losses


def _sample(source: Source, module: Module) -> mx.array:
    """Rows of a weight, in float32."""
    unpack = unpacker(source, module.path, module.spec) if module.spec is not None else lambda part, place: part
    parts = source.take(f"{module.path}.weight")
    chosen = {0, len(parts) // 2} if len(parts) > 1 else {0}
    found = []
    for place in sorted(chosen)[:_SAMPLE_PARTS]:
        whole = unpack(parts[place], place)
        rows = whole.reshape(-1, whole.shape[-1])
        step = max(1, rows.size // _SAMPLE_WEIGHTS)
        found.append(rows[::step].astype(mx.float32))
        mx.eval(found[-1])
    sample = mx.concatenate(found)
    mx.clear_cache()
    return sample
