"""How much each weight loses by each format: measured on samples of the weights, where the model is not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from mlx_backend.conversion.allocation import Option
from mlx_backend.conversion.options import allowed, bytes_of
from mlx_backend.conversion.quantizing import unpacker
from mlx_backend.conversion.search import searched
from mlx_backend.conversion.source import DTYPES, Module, Source
from mlx_backend.conversion.spec import Spec

_SAMPLE_WEIGHTS = 1 << 16
_SAMPLE_PARTS = 2
"""Of a stack, such as a layer's experts."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The bytes of each format that each weight may have, and those of all other tensors."""

    formats: Mapping[str, Mapping[Spec | None, int]]
    fixed_bytes: int

    @property
    def least_bytes(self) -> int:
        return self.fixed_bytes + sum(min(sizes.values()) for sizes in self.formats.values())


def read_sizes(source: Source, *, is_measured: bool = False) -> Sizes:
    """Return the bytes of all formats; nothing is read. `is_measured`: losses will be, so that fewer bits may do."""
    formats = {}
    fixed = sum(each.num_weights * each.dtype.size for each in source.weights.values())
    for module in source.modules.values():
        names = [f"{module.path}.{name}" for name in ("weight", "scales", "biases", "global_scale")]
        held = [source.weights[name] for name in names if name in source.weights]
        fixed -= (own := sum(each.num_weights * each.dtype.size for each in held))
        like = source.weights[names[1 if module.spec is not None else 0]].dtype
        dtype, itemsize = (DTYPES[like], like.size) if like.size > 1 else ("BF16", 2)
        specs = allowed(module.candidate, is_measured=is_measured, most=module.spec)
        formats[module.path] = {
            spec: own if spec == module.spec else bytes_of(module.shape, dtype, itemsize, spec)
            for spec in ((module.spec,) if module.has_global_scale else specs)
        }
    return Sizes(formats, fixed)


def sampled_options(source: Source, sizes: Sizes) -> dict[str, tuple[Option, ...]]:
    """Measure what each format of each weight loses, on samples, and use the source up. Raises ConversionError."""
    options = {}
    for path, formats in sizes.formats.items():
        losses = _losses(source, source.modules[path], tuple(formats))
        options[path] = tuple(Option(spec, num_bytes, losses[spec]) for spec, num_bytes in formats.items())
    return options


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
