"""Convert the weights of a blueprint to the tensors of a safetensors file, piece by piece, and measure the loss.

Codes of affine types are copied; other quantized types are requantized, those other than Q6_K only if requested.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from server.importing import affine, dequantize, requantize
from server.importing.affine import GROUP_SIZE, Floats, Groups
from server.importing.blueprint import Blueprint, Weight
from server.importing.dtypes import DType
from server.importing.gguf_file import Tensor
from server.importing.problems import CannotImport
from server.importing.rows import read_rows, read_whole
from server.importing.side_by_side import in_order

EIGHT_BITS = 8
"""Bits of transposed weights, and by default of Q6_K: MLX does not support its groups of 16."""
_FLOATS = ("F32", "F16", "BF16", "F64")
_FLOAT32 = DType("float32")
Write = Callable[[Groups], tuple[bytes, ...]]


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor to write to a safetensors file."""

    name: str
    tag: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Part:
    """Tensors of one weight, and their bytes, piece by piece."""

    outputs: tuple[Output, ...]
    pieces: Callable[[], Iterator[tuple[bytes, ...]]]

    @property
    def num_bytes(self) -> int:
        return sum(output.num_bytes for output in self.outputs)


@dataclass(slots=True)
class Losses:
    """Distance of requantized values from the file's, by type, as sums of squares."""

    errors: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    wholes: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, kind: str, error: float, whole: float) -> None:
        self.errors[kind] += error
        self.wholes[kind] += whole

    def relative(self) -> dict[str, float]:
        """Return the relative error of each type's values."""
        return {kind: round(math.sqrt(error / (self.wholes[kind] or 1)), 5) for kind, error in self.errors.items()}

    def as_json(self) -> dict[str, dict[str, float]]:
        return {"errors": dict(self.errors), "wholes": dict(self.wholes)}

    @classmethod
    def from_json(cls, value: Mapping[str, Mapping[str, float]]) -> Losses:
        """Read what `as_json` wrote. Raises KeyError, TypeError, AttributeError or ValueError for anything else."""
        losses = cls()
        for mine, name in ((losses.errors, "errors"), (losses.wholes, "wholes")):
            mine.update((str(kind), float(each)) for kind, each in value[name].items())
        return losses

    def take(self, other: Losses) -> None:
        """Begin with the sums of an earlier run."""
        self.errors, self.wholes = other.errors, other.wholes


class Converter:
    """Builder of the parts of one model. `requantize_bits`: for types that MLX cannot hold; None: they are refused.

    `q6_bits`: bits for Q6_K.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        tensors: Mapping[str, Tensor],
        dtype: DType,
        requantize_bits: int | None = None,
        q6_bits: int = EIGHT_BITS,
    ) -> None:
        self._q6_bits = q6_bits
        self._tensors = tensors
        self._dtype = dtype
        self._bits = requantize_bits
        self._weights = blueprint.weights
        self.losses = Losses()

    def unreadable(self) -> dict[str, list[Tensor]]:
        """Return the tensors that are requantized only if requested, by type."""
        found: dict[str, list[Tensor]] = {}
        for weight in self._weights:
            tensor = self._tensors[weight.source]
            kind = tensor.type.name
            if not (kind in _FLOATS or affine.is_affine(kind) or kind == "Q6_K"):
                found.setdefault(kind, []).append(tensor)
        return found

    def parts(self) -> list[Part]:
        """Return a part for each weight. Raises CannotImport for a type that cannot be read."""
        return [self._part(weight) for weight in self._weights]

    def quantization(self) -> dict[str, int]:
        """Return the bits of each quantized weight, by its name in the model."""
        found = {weight.target: self._bits_of(weight) for weight in self._weights}
        return {target: bits for target, bits in found.items() if bits is not None}

    def _bits_of(self, weight: Weight) -> int | None:
        """Return the weight's bits; None if it is not quantized."""
        kind = self._tensors[weight.source].type.name
        if weight.form != "linear" or kind in _FLOATS or weight.shape[-1] % GROUP_SIZE:
            return None
        if affine.is_affine(kind) and weight.reshape is None:
            return affine.bits_of(kind)
        if kind == "Q6_K":
            return self._q6_bits
        if affine.is_affine(kind):
            return EIGHT_BITS
        return self._bits or EIGHT_BITS

    def _part(self, weight: Weight) -> Part:
        tensor, bits = self._tensors[weight.source], self._bits_of(weight)
        if not dequantize.can_read(tensor.type.name):
            raise CannotImport(f"the values of type {tensor.type} (tensor {tensor.name!r}) cannot be read")
        if bits is None:
            return self._plain_part(weight)
        *rows, length = weight.shape
        groups = length // GROUP_SIZE
        words = math.prod(rows) * length * bits // 32
        num_scales = math.prod(rows) * groups
        outputs = (
            Output(f"{weight.target}.weight", "U32", (*rows, length * bits // 32), 4 * words),
            Output(f"{weight.target}.scales", self._dtype.tag, (*rows, groups), self._dtype.num_bytes * num_scales),
            Output(f"{weight.target}.biases", self._dtype.tag, (*rows, groups), self._dtype.num_bytes * num_scales),
        )

        def write(groups: Groups) -> tuple[bytes, ...]:
            _check_finite(groups.scales, tensor)
            _check_finite(groups.biases, tensor)
            packed = affine.pack(groups.codes, bits).tobytes()
            return packed, self._encode(groups.scales, tensor), self._encode(groups.biases, tensor)

        is_copied = affine.is_affine(tensor.type.name) and weight.reshape is None
        make = self._copying(weight, write) if is_copied else self._quantizing(weight, bits, write)
        return Part(outputs, make)

    def _copying(self, weight: Weight, write: Write) -> Callable[[], Iterator[tuple[bytes, ...]]]:
        tensor = self._tensors[weight.source]
        kind = tensor.type.name

        def pieces() -> Iterator[tuple[bytes, ...]]:
            rows = read_rows(tensor, None if weight.order is None else weight.order())
            return in_order(lambda each: write(affine.read_groups(kind, each)), rows)

        return pieces

    def _quantizing(self, weight: Weight, bits: int, write: Write) -> Callable[[], Iterator[tuple[bytes, ...]]]:
        tensor = self._tensors[weight.source]

        def work(values: Floats) -> tuple[tuple[bytes, ...], float, float]:
            _check_finite(values, tensor)
            values = values.reshape(-1, weight.shape[-1])
            groups = requantize.quantize(values, bits, self._dtype)
            error = _sum_of_squares(affine.values_of(groups) - values)
            return write(groups), error, _sum_of_squares(values)

        def pieces() -> Iterator[tuple[bytes, ...]]:
            for written, error, whole in in_order(work, self._values(weight)):
                self.losses.add(tensor.type.name, error, whole)
                yield written

        return pieces

    def _plain_part(self, weight: Weight) -> Part:
        tensor, dtype = self._tensors[weight.source], _FLOAT32 if weight.form == "exact" else self._dtype
        name = f"{weight.target}.weight" if weight.form == "linear" else weight.target
        output = Output(name, dtype.tag, weight.shape, math.prod(weight.shape) * dtype.num_bytes)

        def pieces() -> Iterator[tuple[bytes, ...]]:
            for values in self._values(weight):
                _check_finite(values, tensor)
                yield (self._encode(values, tensor, dtype),)

        return Part((output,), pieces)

    def _values(self, weight: Weight) -> Iterator[Floats]:
        """Yield the weight's values in order, in pieces."""
        tensor = self._tensors[weight.source]
        order = None if weight.order is None else weight.order()
        if weight.reshape is not None:
            names = (weight.source, *weight.others)
            try:
                yield weight.reshape({name: _all_values(self._tensors[name]) for name in names})
            except ValueError:
                raise CannotImport(f"the shapes of the file's tensors {', '.join(names)} do not agree") from None
        elif len(tensor.shape) == 1:  # a vector is one row; `order` orders its values
            found = _all_values(tensor).reshape(-1)
            yield found if order is None else found[order]
        else:
            for rows in read_rows(tensor, order):
                yield dequantize.values(tensor.type.name, rows)

    def _encode(self, values: Floats, tensor: Tensor, dtype: DType | None = None) -> bytes:
        try:
            return (dtype or self._dtype).encode(values)
        except OverflowError as error:
            raise CannotImport(
                f"tensor {tensor.name!r} has {error}, the most of float16; import it with --dtype bfloat16"
            ) from None


def _sum_of_squares(values: Floats) -> float:
    """Return the sum of squares: rows in float32, in which numpy is fast, and their sums in float64."""
    return float(np.square(values).sum(axis=1).sum(dtype=np.float64))


def _all_values(tensor: Tensor) -> Floats:
    return dequantize.values(tensor.type.name, read_whole(tensor))


def _check_finite(values: Floats, tensor: Tensor) -> None:
    if not np.isfinite(values).all():
        raise CannotImport(f"tensor {tensor.name!r} of {tensor.file} has values that are no numbers; fetch it again")
