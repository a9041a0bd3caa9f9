"""Quantization formats: how one tensor is stored, and its size. Pure; no MLX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from mlx_backend.conversion.errors import ConversionError

_AFFINE_BITS = (2, 3, 4, 5, 6, 8)
"""One bit is excluded: codes of one bit are noise (relative error above 1)."""
_AFFINE_GROUPS = (32, 64, 128)
_FIXED: Mapping[str, tuple[int, int]] = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}
"""(bits, group size) of the modes that have only one."""
MODES = ("affine", *_FIXED)
FULL_BITS = 16
"""Number of bits from which a request keeps a tensor as it is."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One of MLX's quantization formats. None stands for a tensor that is not quantized."""

    bits: int
    group_size: int = 64
    mode: str = "affine"

    @property
    def bits_per_weight(self) -> float:
        """Bits of a number with its share of scale and bias, both of 16 bits (of 8, without bias, outside affine)."""
        return self.bits + (32 if self.mode == "affine" else 8) / self.group_size

    def tensors(self, shape: tuple[int, ...], dtype: str, itemsize: int) -> dict[str, tuple[str, tuple[int, ...], int]]:
        """Return dtype, shape and bytes of each tensor that a weight of this shape becomes, by its name's last part."""
        packed = (*shape[:-1], shape[-1] * self.bits // 32)
        scales = (*shape[:-1], shape[-1] // self.group_size)
        found = {"weight": ("U32", packed, 4 * prod(packed))}
        if self.mode != "affine":
            return found | {"scales": ("U8", scales, prod(scales))}
        kept = (dtype, scales, itemsize * prod(scales))
        return found | {"scales": kept, "biases": kept}

    def to_config(self) -> dict[str, Any]:
        """Return the entry of config.json."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    def divides(self, width: int) -> bool:
        return width % self.group_size == 0

    def __str__(self) -> str:
        if self.mode != "affine":
            return self.mode
        return f"{self.bits} bits g{self.group_size}"


def read_spec(bits: int | None, group_size: int | None = None, mode: str = "affine") -> Spec | None:
    """Return the requested format, or None for a tensor that stays as it is. Raises ConversionError."""
    if mode in _FIXED:
        fixed = Spec(*_FIXED[mode], mode)
        if (bits or fixed.bits, group_size or fixed.group_size) != (fixed.bits, fixed.group_size):
            raise ConversionError(f"mode {mode} has {fixed.bits} bits in groups of {fixed.group_size} and no others")
        return fixed
    if mode != "affine":
        raise ConversionError(f"there is no mode {mode!r}; use one of {', '.join(MODES)}")
    if bits is None:
        raise ConversionError("no bits are given; use one of 2, 3, 4, 5, 6, 8, or 16 to keep a tensor as it is")
    if bits >= FULL_BITS:
        return None
    if bits not in _AFFINE_BITS:
        raise ConversionError(f"{bits} bits: use one of 2, 3, 4, 5, 6, 8, or 16 to keep a tensor as it is")
    group_size = group_size or 64
    if group_size not in _AFFINE_GROUPS:
        raise ConversionError(f"group size {group_size}: use 32, 64 or 128")
    return Spec(bits, group_size)


def fitting(spec: Spec | None, width: int) -> Spec | None:
    """Return `spec`, or the same in smaller groups if its own do not divide the width; None if none do."""
    if spec is None or spec.divides(width):
        return spec
    if spec.mode != "affine":
        return None
    smaller = (size for size in reversed(_AFFINE_GROUPS) if size < spec.group_size and width % size == 0)
    return next((Spec(spec.bits, size) for size in smaller), None)


def config_section(chosen: Iterable[tuple[str, Spec | None, int, int]], default: Spec | None) -> dict[str, Any] | None:
    """Return config.json's `quantization` for (path, format, width, number of weights); None if none is quantized.

    `default` holds for what the section does not name; without it, the format of most weights does.
    """
    modules = list(chosen)
    counts: Counter[Spec] = Counter()
    for _, spec, _, num_weights in modules:
        if spec is not None:
            counts[spec] += num_weights
    if not counts:
        return None
    usual = default or counts.most_common(1)[0][0]
    section = usual.to_config()
    for path, spec, width, _ in modules:
        if spec is None and usual.divides(width):
            section[path] = False
        elif spec is not None and spec != usual:
            section[path] = spec.to_config()
    return section
