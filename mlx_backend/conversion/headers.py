"""Headers of safetensors files: the declared contents of a file, checked against its size. No MLX.

A file is 8 bytes of length, little-endian, a JSON header of that length, then the tensors' bytes without a gap. MLX
trusts a header; a conversion does not, since it would read one tensor's bytes as another's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from mlx_backend.conversion.errors import ConversionError

ITEM_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
MOST_HEADER_BYTES = 100_000_000
"""Limit set by the format."""
_MOST_DIMS = 16


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a file: safetensors' dtype name, shape, and the place of its bytes, from the header's end."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of a file, in the order of their bytes."""

    tensors: tuple[Tensor, ...]
    start: int
    """Offset of the first tensor's bytes in the file."""


def read_header(file: Path) -> Header:
    """Read and check the header of a file. Raises ConversionError."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            raw = stream.read(min(length, MOST_HEADER_BYTES + 1))
    except OSError as error:
        raise ConversionError(f"{file} cannot be read ({error.strerror or error})") from None
    return parse_header(str(file), length, raw, size)


def parse_header(name: str, length: int, raw: bytes, size: int) -> Header:
    """Return the header of a file of `size` bytes that declares it as `length` long. Raises ConversionError."""
    if not 2 <= length <= MOST_HEADER_BYTES or len(raw) < length:
        raise ConversionError(f"{name} is no safetensors file, or it is cut off in its header; fetch it again")
    try:
        document = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{name} has a header that cannot be read ({error}); fetch it again") from None
    if not isinstance(document, dict):
        raise ConversionError(f"{name} has a header that is no JSON object; fetch it again")
    entries = (entry for entry in document.items() if entry[0] != "__metadata__")
    tensors = sorted((_read_tensor(name, *entry) for entry in entries), key=lambda each: (each.begin, each.end))
    end = 0
    for each in tensors:
        if each.begin != end:
            raise ConversionError(
                f"{name}: the bytes of {each.name[:80]!r} overlap others or leave a gap; fetch it again"
            )
        end = each.end
    if 8 + length + end > size:
        raise ConversionError(f"{name} is cut off: it has {size} bytes of {8 + length + end}; fetch it again")
    if 8 + length + end < size:
        raise ConversionError(
            f"{name} has {size - 8 - length - end} bytes that its header does not know; fetch it again"
        )
    return Header(tuple(tensors), 8 + length)


def check_names(headers: Mapping[str, Header]) -> None:
    """Raise ConversionError if two files have a tensor of the same name."""
    seen: dict[str, str] = {}
    for file, header in headers.items():
        for tensor in header.tensors:
            if tensor.name in seen:
                raise ConversionError(
                    f"{seen[tensor.name]} and {file} both have {tensor.name[:80]!r}; keep one of them"
                )
            seen[tensor.name] = file


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key[:80]!r} is there twice")
        found[key] = value
    return found


def _read_tensor(file: str, name: str, entry: Any) -> Tensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        is_whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        num_bytes = prod(shape) * ITEM_BYTES[dtype] if is_whole and len(shape) <= _MOST_DIMS else -1
    except KeyError as error:
        is_dtype = "dtype" in entry and error.args[0] == entry["dtype"]
        what = f"dtype {error} is not known" if is_dtype else f"there is no {error}"
        raise ConversionError(f"{file}: the header's entry of {name[:80]!r} cannot be read: {what}") from None
    except (TypeError, ValueError, AttributeError):
        raise ConversionError(f"{file}: the header's entry of {name[:80]!r} cannot be read; fetch it again") from None
    if num_bytes != end - begin:
        raise ConversionError(
            f"{file}: {name[:80]!r} of shape {list(shape)[:_MOST_DIMS]} and dtype {dtype} does not have {end - begin} "
            "bytes, as its header says; fetch it again"
        )
    return Tensor(name, dtype, tuple(shape), begin, end)
