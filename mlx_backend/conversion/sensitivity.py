"""How much each weight loses by each format: measured by computing the model, or on samples of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_backend.api.interface import LoadProgress
from mlx_backend.conversion.allocation import Option
from mlx_backend.conversion.errors import ConversionError
from mlx_backend.conversion.options import allowed, bytes_of, gaussian_losses
from mlx_backend.conversion.quality import log_probabilities, mean_kl, open_model, sequences_of
from mlx_backend.conversion.quantizing import unpacker
from mlx_backend.conversion.search import searched
from mlx_backend.conversion.source import DTYPES, Module, Source
from mlx_backend.conversion.spec import Spec

_SAMPLE_WEIGHTS = 1 << 16
_CALIBRATION_TOKENS = 2048
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

    @property
    def most_bytes(self) -> int:
        """Of the weights that have a choice."""
        return sum(max(sizes.values()) for sizes in self.formats.values())


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


def sampled_options(
    source: Source, sizes: Sizes, report: Callable[[LoadProgress], None]
) -> dict[str, tuple[Option, ...]]:
    """Measure what each format of each weight loses, on samples, and use the source up. Raises ConversionError."""
    options, done = {}, 0
    for path, formats in sizes.formats.items():
        losses = _losses(source, source.modules[path], tuple(formats))
        options[path] = tuple(Option(spec, num_bytes, losses[spec]) for spec, num_bytes in formats.items())
        done += max(formats.values())
        report(LoadProgress(done_bytes=done, total_bytes=sizes.most_bytes))
    return options


def measured_options(
    folder: Path, ids: Sequence[int], sizes: Sizes, report: Callable[[LoadProgress], None]
) -> dict[str, tuple[Option, ...]]:
    """Measure what each format of each weight loses by computing the model with that weight alone in it.

    The loss is the KL divergence of the next token on the first of the text's tokens. Raises ConversionError.
    """
    tokens = sequences_of(ids[:_CALIBRATION_TOKENS])
    try:
        model = open_model(folder)
        mx.eval(model.parameters())
        expected = log_probabilities(model(tokens))
        mx.eval(expected)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConversionError(f"the model cannot be computed here ({reason}); leave --calibrate out") from None
    modules, options = dict(model.named_modules()), {}
    done = 0
    for path, formats in sizes.formats.items():
        found = []
        for spec, num_bytes in formats.items():
            with _stored(modules[path], spec) as is_changed:
                loss = max(0.0, mean_kl(expected, model(tokens))) if is_changed else 0.0
            found.append(Option(spec, num_bytes, loss))
        options[path] = tuple(found)
        done += max(formats.values())
        report(LoadProgress(done_bytes=done, total_bytes=sizes.most_bytes))
        mx.clear_cache()
    return options


@contextmanager
def _stored(module: Any, spec: Spec | None) -> Iterator[bool]:
    """Have a module's weight stored in a format meanwhile; gives whether that changes it."""
    before = {name: module[name] for name in ("weight", "scales", "biases") if name in module}
    if "scales" not in before:
        if spec is not None:
            made = searched(before["weight"], spec)
            arguments = {"group_size": spec.group_size, "bits": spec.bits, "mode": spec.mode}
            module.weight = mx.dequantize(*made, **arguments, dtype=before["weight"].dtype)
        yield spec is not None
        module.weight = before["weight"]
        return
    kept = Spec(module.bits, module.group_size, module.mode)
    if spec not in (None, kept):
        weight = mx.dequantize(*before.values(), group_size=kept.group_size, bits=kept.bits, mode=kept.mode)
        _set(module, dict(zip(("weight", "scales", "biases"), searched(weight, spec), strict=False)), spec)
    yield spec not in (None, kept)
    _set(module, before, kept)


def _set(module: Any, arrays: Mapping[str, Any], spec: Spec) -> None:
    module.bits, module.group_size, module.mode = spec.bits, spec.group_size, spec.mode
    for name in ("weight", "scales", "biases"):
        module[name] = arrays.get(name)


def typical_options(source: Source, sizes: Sizes) -> dict[str, tuple[Option, ...]]:
    """Return options with the losses that weights of a normal distribution have, where there are no weights."""
    options = {}
    for path, formats in sizes.formats.items():
        losses = gaussian_losses(formats)
        kept = source.modules[path].spec
        options[path] = tuple(
            Option(spec, size, 0.0 if spec == kept else losses[spec]) for spec, size in formats.items()
        )
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
