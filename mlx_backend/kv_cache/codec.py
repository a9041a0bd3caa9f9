"""Forms in which one part of a KV cache (keys, or values) is held: unchanged, or quantized.

Arrays are [rows, heads, tokens, …]. A part is one array, or three: packed integers, scales and biases. Code that moves
columns and rows treats both alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import mlx.core as mx

from mlx_backend.kv_cache.plan import Precision

ColumnForm = Literal["quantized", "quantized-in-decode", "array"]
"""Form in which a model gets columns that are held quantized: QuantizedColumns; QuantizedColumns in steps of one token
and an array in chunks; or an array. Arrays serve models that compute with keys or values before attention does."""


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedColumns:
    """Quantized keys or values of some rows, which a cache passes to attention in place of an array.

    `head`: the first columns, in full precision, or None.
    """

    arrays: tuple[mx.array, mx.array, mx.array]
    precision: Precision
    head: mx.array | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the array that it replaces, [rows, heads, tokens, dim]."""
        rows, heads, tokens, groups = self.arrays[1].shape
        in_head = 0 if self.head is None else self.head.shape[2]
        return rows, heads, in_head + tokens, groups * self.precision.group_size

    @property
    def dtype(self) -> mx.Dtype:
        return self.arrays[1].dtype

    def dequantize(self, heads: slice = slice(None)) -> mx.array:
        """Return all columns, or those of some heads, as an array."""
        packed, scales, biases = (array[:, heads] for array in self.arrays)
        full = mx.dequantize(packed, scales, biases, self.precision.group_size, self.precision.bits)
        return full if self.head is None else mx.concatenate([self.head[:, heads], full], axis=2)

    def transposed_product(self, x: mx.array) -> mx.array:
        """Return `x @ columns.T`, [rows, heads, n, tokens] in x's dtype, for x [rows, heads, n, dim]."""
        product = self._product(x, transpose=True)
        if self.head is None:
            return product
        return mx.concatenate([x @ self.head.astype(x.dtype).swapaxes(-1, -2), product], axis=-1)

    def product(self, x: mx.array) -> mx.array:
        """Return `x @ columns`, [rows, heads, n, dim] in x's dtype, for x [rows, heads, n, tokens]."""
        if self.head is None:
            return self._product(x, transpose=False)
        width = self.head.shape[2]
        return x[..., :width] @ self.head.astype(x.dtype) + self._product(x[..., width:], transpose=False)

    def _product(self, x: mx.array, transpose: bool) -> mx.array:
        packed, scales, biases = self.arrays
        return mx.quantized_matmul(
            x,
            packed,
            scales.astype(x.dtype),
            biases.astype(x.dtype),
            transpose=transpose,
            group_size=self.precision.group_size,
            bits=self.precision.bits,
        )


Part: TypeAlias = mx.array | QuantizedColumns


class Codec(Protocol):
    """Conversion of keys or values from the form that the model computes to the arrays that are kept, and back."""

    @property
    def num_arrays(self) -> int: ...

    def encode(self, part: mx.array) -> list[mx.array]: ...

    def fetch(self, arrays: Sequence[mx.array], num_new: int) -> Part:
        """Return the columns that a model attends to, in the form it gets in a pass over `num_new` tokens per row."""


class FullCodec:
    """Codec that keeps a part unchanged."""

    num_arrays = 1

    def encode(self, part: mx.array) -> list[mx.array]:
        return [part]

    def fetch(self, arrays: Sequence[mx.array], num_new: int) -> Part:
        return arrays[0]


class QuantizedCodec:
    """MLX's affine quantization along the last axis, token by token: a token's result depends on no other token."""

    num_arrays = 3

    def __init__(self, precision: Precision, form: ColumnForm) -> None:
        self.precision, self._form = precision, form

    def encode(self, part: mx.array) -> list[mx.array]:
        return list(mx.quantize(part, self.precision.group_size, self.precision.bits))

    def fetch(self, arrays: Sequence[mx.array], num_new: int) -> Part:
        packed, scales, biases = arrays
        columns = QuantizedColumns((packed, scales, biases), self.precision)
        stays_quantized = self._form == "quantized" or (self._form == "quantized-in-decode" and num_new == 1)
        return columns if stays_quantized else columns.dequantize()


FULL: Codec = FullCodec()


def with_head(head: mx.array, rest: Part) -> Part:
    """Return columns in full precision followed by others."""
    if isinstance(rest, QuantizedColumns):
        return QuantizedColumns(rest.arrays, rest.precision, head)
    return mx.concatenate([head, rest], axis=2)
