"""Loss of each weight by format: measured by computing the model, or on samples of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_backend.api.interface import LoadProgress
from mlx_backend.conversion.allocation import Option
from mlx_backend.conversion.calibrated import Calibrated
from mlx_backend.conversion.compensated import output_error
from mlx_backend.conversion.losses import LossFile
from mlx_backend.conversion.options import allowed, bytes_of, gaussian_losses, interpolated, probes_of, unmeasured
from mlx_backend.conversion.quantizing import unpacker
from mlx_backend.conversion.search import searched
from mlx_backend.conversion.source import DTYPES, Module, Source
from mlx_backend.conversion.spec import Spec

_SAMPLE_WEIGHTS = 1 << 16
_SAMPLE_PARTS = 2
"""Number of parts of a stack, such as a layer's experts, that are sampled."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of each format that each weight may have, and those of all other tensors."""

    formats: Mapping[str, Mapping[Spec | None, int]]
    fixed_bytes: int

    @property
    def least_bytes(self) -> int:
        return self.fixed_bytes + sum(min(sizes.values()) for sizes in self.formats.values())

    @property
    def most_bytes(self) -> int:
        """Bytes of the largest choices of all weights that have one."""
        return sum(max(sizes.values()) for sizes in self.formats.values())


def read_sizes(source: Source, *, is_measured: bool = False) -> Sizes:
    """Return the bytes of all formats; reads nothing. `is_measured`: with the formats for measured losses."""
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


def sampled_options(
    source: Source, sizes: Sizes, report: Callable[[LoadProgress], None]
) -> dict[str, tuple[Option, ...]]:
    """Measure the loss of each format of each weight, on samples, and use the source up. Raises ConversionError."""
    options, done = {}, 0
    for path, formats in sizes.formats.items():
        losses = _losses(source, source.modules[path], tuple(formats))
        options[path] = tuple(
            Option(spec, num_bytes, unmeasured(path, spec, losses[spec])) for spec, num_bytes in formats.items()
        )
        done += max(formats.values())
        report(LoadProgress(done_bytes=done, total_bytes=sizes.most_bytes))
    return options


def measured_options(
    source: Source, calibrated: Calibrated, sizes: Sizes, report: Callable[[LoadProgress], None], file: LossFile
) -> dict[str, tuple[Option, ...]]:
    """Measure the loss of each format of each weight by computing the model with that weight alone in it.

    The loss is the KL divergence of the next token. It is measured with few bits and with some more; for the other
    formats it follows from the error of the layer's outputs. Raises ConversionError.
    """
    options, done = {}, 0
    for path, formats in sizes.formats.items():
        changing = [spec for spec in formats if spec not in (None, source.modules[path].spec)]
        losses = file.get(path)
        if losses is None or not {str(spec) for spec in changing} <= losses.keys():
            measured = _measured_losses(source, calibrated, path, changing)
            file.add(path, losses := {str(spec): loss for spec, loss in measured.items()})
        options[path] = tuple(
            Option(spec, size, losses[str(spec)] if spec in changing else 0.0) for spec, size in formats.items()
        )
        done += max(formats.values())
        report(LoadProgress(done_bytes=done, total_bytes=sizes.most_bytes))
        mx.clear_cache()
    return options


def _measured_losses(source: Source, calibrated: Calibrated, path: str, specs: Sequence[Spec]) -> dict[Spec, float]:
    module = calibrated.computed.modules[path]
    weight = _unpacked(module)
    if (dtype := source.weights[f"{path}.weight"].dtype) in DTYPES and mx.issubdtype(dtype, mx.floating):
        weight = weight.astype(dtype)
    probes, errors, kls = probes_of(specs), {}, {}
    for spec in specs:
        made = calibrated.quantize(weight, spec, path, 0)
        errors[spec] = output_error(weight, made, spec, calibrated.hessians.of(path))
        if spec in probes:
            with _stored(module, spec, made):
                kls[spec] = calibrated.computed.kl(path)
    return interpolated(errors, kls)


def _unpacked(module: Any) -> mx.array:
    if "scales" not in module:
        return module.weight
    arrays = [module[name] for name in ("weight", "scales", "biases") if module.get(name) is not None]
    return mx.dequantize(*arrays, group_size=module.group_size, bits=module.bits, mode=module.mode)


@contextmanager
def _stored(module: Any, spec: Spec, made: Sequence[mx.array]) -> Iterator[None]:
    """Replace a module's weight by its quantized form while the context is open."""
    before = {name: module[name] for name in ("weight", "scales", "biases") if name in module}
    if "scales" not in before:
        arguments = {"group_size": spec.group_size, "bits": spec.bits, "mode": spec.mode}
        module.weight = mx.dequantize(*made, **arguments, dtype=before["weight"].dtype)
        yield
        module.weight = before["weight"]
        return
    kept, dtype = Spec(module.bits, module.group_size, module.mode), before["scales"].dtype
    cast = [each.astype(dtype) if mx.issubdtype(each.dtype, mx.floating) else each for each in made]
    _set(module, dict(zip(("weight", "scales", "biases"), cast, strict=False)), spec)
    yield
    _set(module, before, kept)


def _set(module: Any, arrays: Mapping[str, Any], spec: Spec) -> None:
    module.bits, module.group_size, module.mode = spec.bits, spec.group_size, spec.mode
    for name in ("weight", "scales", "biases"):
        module[name] = arrays.get(name)


def typical_options(source: Source, sizes: Sizes) -> dict[str, tuple[Option, ...]]:
    """Return options with the losses of normally distributed weights, if there are no weights."""
    options = {}
    for path, formats in sizes.formats.items():
        losses = gaussian_losses(formats)
        kept = source.modules[path].spec
        options[path] = tuple(
            Option(spec, size, 0.0 if spec == kept else unmeasured(path, spec, losses[spec]))
            for spec, size in formats.items()
        )
    return options


def _losses(source: Source, module: Module, specs: tuple[Spec | None, ...]) -> dict[Spec | None, float]:
    """Return the relative squared error of each format on a sample; 0 for the source's format."""
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
    """Return rows of a weight, in float32."""
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
