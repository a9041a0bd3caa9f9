"""Encode float32 values in the number formats of weights, scales and biases."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

DTypeName = Literal["float16", "bfloat16", "float32"]
NAMES: tuple[DTypeName, ...] = get_args(DTypeName)
Floats = NDArray[np.float32]


class DType:
    """One number format. `tag` is its name in a safetensors file."""

    def __init__(self, name: DTypeName) -> None:
        self.name = name
        self.tag = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}[name]
        self.num_bytes = 4 if name == "float32" else 2

    def encode(self, values: Floats) -> bytes:
        """Return the values' bytes. Raises OverflowError for a finite value that is too large for the format."""
        if self.name == "float32":
            return np.asarray(values, "<f4").tobytes()
        if self.name == "bfloat16":
            return _to_bfloat16(values).tobytes()
        with np.errstate(over="ignore"):
            halves = np.asarray(values).astype("<f2")
        if np.isinf(halves).any() and not np.isinf(values).any():
            raise OverflowError("a value above 65504")
        return halves.tobytes()

    def rounded(self, values: Floats) -> Floats:
        """Return the values as rounded by the format."""
        if self.name == "float32":
            return values
        if self.name == "bfloat16":
            return (_to_bfloat16(values).astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)


def _to_bfloat16(values: Floats) -> NDArray[np.uint16]:
    """Return the upper halves of float32 numbers, rounded to the nearest, ties to even; NaN stays NaN."""
    words = np.ascontiguousarray(values, "<f4").view("<u4")
    rounded = (words + 0x7FFF + ((words >> 16) & 1)) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype("<u2")
