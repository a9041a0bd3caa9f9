"""One weight at a time from the source into its file: read, checked, quantized, measured, written, freed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_backend.conversion.errors import ConversionError
from mlx_backend.conversion.plan import Item
from mlx_backend.conversion.shards import PartFile
from mlx_backend.conversion.source import Source
from mlx_backend.conversion.spec import Spec

Quantizer = Callable[[mx.array, Spec, str, int], Sequence[mx.array]]
"""Returns weight, scales and, in affine mode, biases of a weight or a part of it, given by path and number.
"""

_PIECE_WEIGHTS = 1 << 26
_BITS = {
    mx.float16: (mx.uint16, 0x7FFF, 0x7C00),
    mx.bfloat16: (mx.uint16, 0x7FFF, 0x7F80),
    mx.float32: (mx.uint32, 0x7FFF_FFFF, 0x7F80_0000),
}
"""Bits of a number without its sign, and those of infinity: anything above is a NaN."""
_SAMPLE_WEIGHTS = 1 << 14
"""Number of weights on which a part's error is measured: whole rows, spread over it."""


def nearest(weight: mx.array, spec: Spec) -> Sequence[mx.array]:
    """Quantize as mlx-lm does: each group's range from its least to its greatest number."""
    made: Sequence[mx.array] = mx.quantize(weight, spec.group_size, spec.bits, mode=spec.mode)
    return made


def alone(quantize: Callable[[mx.array, Spec], Sequence[mx.array]]) -> Quantizer:
    """Return a quantizer that uses nothing but the weight."""
    return lambda weight, spec, path, place: quantize(weight, spec)


@dataclass(slots=True)
class Measured:
    """Sums of squares: of the changes by quantization, and of the weights themselves."""

    changed: float = 0.0
    whole: float = 0.0

    @property
    def relative(self) -> float:
        """Relative error (root mean square); 0 for a weight of zeros."""
        return math.sqrt(self.changed / self.whole) if self.whole > 0 else 0.0


def write_item(source: Source, item: Item, file: PartFile, quantize: Quantizer) -> float | None:
    """Write all tensors of an item and return the relative error, if it was quantized. Raises ConversionError."""
    if not item.is_quantized_anew:
        for name, _, _ in item.unit.tensors:
            _copy(source, name, file)
        return None
    packed = None if item.source_spec is None else unpacker(source, item.path, item.source_spec)
    weights = source.take(f"{item.path}.weight")
    names = [name for name, _, _ in item.unit.tensors]
    ends = [0] * len(names)
    measured = Measured()
    for place in range(len(weights)):
        weight = weights[place] if packed is None else packed(weights[place], place)
        weights[place] = None  # freed once it is written
        _check(weight, item.path, is_quantized=True)
        assert item.spec is not None
        made = quantize(weight, item.spec, item.path, place)
        mx.eval(made)
        _measure(weight, made, item.spec, measured)
        del weight
        for at, (name, array) in enumerate(zip(names, made, strict=True)):
            file.put(name, data := _bytes(array), ends[at])
            ends[at] += len(data)
        del made, array, data
        mx.clear_cache()
    return measured.relative


def _copy(source: Source, name: str, file: PartFile) -> None:
    end = 0
    parts = source.take(name)
    for place in range(len(parts)):
        part, parts[place] = parts[place], None
        if mx.issubdtype(part.dtype, mx.floating):
            _check(part, name, is_quantized=False)
        data = _bytes(part)
        file.put(name, data, end)
        end += len(data)
        del part, data
        mx.clear_cache()


def unpacker(source: Source, path: str, spec: Spec) -> Callable[[Any, int], mx.array]:
    """Return a function that unpacks a part of a weight with the source format `spec`. Raises ConversionError."""
    if f"{path}.global_scale" in source.weights:
        raise ConversionError(f"{path} has a global scale and cannot be quantized again; keep it with a recipe")
    scales = source.take(f"{path}.scales")
    biases = source.take(f"{path}.biases") if spec.mode == "affine" else [None] * len(scales)
    if not len(scales) == len(biases) == len(source.weights[f"{path}.weight"].parts):
        raise ConversionError(f"{path}: its weight and its scales are not stored alike; convert the original model")

    def unpack(weight: mx.array, place: int) -> mx.array:
        dtype = scales[place].dtype if spec.mode == "affine" else source.dtype or mx.bfloat16
        return mx.dequantize(
            weight, scales[place], biases[place], spec.group_size, spec.bits, mode=spec.mode, dtype=dtype
        )

    return unpack


def _check(weight: mx.array, path: str, *, is_quantized: bool) -> None:
    """Raise ConversionError for a weight that cannot be read, has a NaN, or has an infinite number to be quantized."""
    try:
        mx.eval(weight)
        is_broken = any(_is_broken(piece, is_quantized) for piece in _pieces(weight))
    except RuntimeError as error:
        raise ConversionError(f"{path} cannot be read: {str(error).strip().splitlines()[0][:200]}") from None
    if is_broken:
        what = "are infinite or" if is_quantized else "are"
        raise ConversionError(
            f"{path} has weights that {what} no numbers (NaN); the source is damaged: compare it with `pippin verify`"
        )


def _is_broken(numbers: mx.array, is_quantized: bool) -> bool:
    kind, mask, infinity = _BITS[numbers.dtype]
    highest = mx.max(numbers.view(kind) & mask).item()  # as bits: a fifth of the time of `isfinite` on a CPU
    return bool(highest >= infinity if is_quantized else highest > infinity)


def _pieces(array: mx.array) -> Iterator[mx.array]:
    """Yield an array's numbers in pieces, so that temporaries are small."""
    flat = array.reshape(-1)
    return (flat[start : start + _PIECE_WEIGHTS] for start in range(0, flat.size, _PIECE_WEIGHTS))


def _measure(weight: mx.array, made: Sequence[mx.array], spec: Spec, into: Measured) -> None:
    rows = weight.reshape(-1, weight.shape[-1])
    step = max(1, rows.size // _SAMPLE_WEIGHTS)
    sampled = [array.reshape(-1, array.shape[-1])[::step] for array in made]
    back = mx.dequantize(
        sampled[0],
        sampled[1],
        *sampled[2:],
        group_size=spec.group_size,
        bits=spec.bits,
        mode=spec.mode,
        dtype=mx.float32,
    )
    exact = rows[::step].astype(mx.float32)
    into.changed += mx.square(back - exact).sum().item()
    into.whole += mx.square(exact).sum().item()


def _bytes(array: mx.array) -> memoryview:
    flat = mx.contiguous(array.reshape(-1)).view(mx.uint8)
    mx.eval(flat)
    return memoryview(flat)
