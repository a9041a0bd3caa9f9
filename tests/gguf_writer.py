"""Writer of GGUF files for tests only: metadata typed by value, tensors in a few types."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from server.importing.gguf_types import NUMBERS, TYPES

ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class Raw:
    """A tensor's data as bytes, of any type."""

    shape: tuple[int, ...]
    type: str
    data: bytes


def encode(values: Any, kind: str) -> Raw:
    """Encode an array in a type that is simple to write: F32, F16, BF16, Q8_0, Q4_0."""
    values = np.ascontiguousarray(values, np.float32)
    if kind == "F32":
        data = values.tobytes()
    elif kind == "F16":
        data = values.astype(np.float16).tobytes()
    elif kind == "BF16":
        data = (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    else:
        data = _blocks(values.reshape(-1, 32), kind)
    return Raw(values.shape, kind, data)


def _blocks(groups: Any, kind: str) -> bytes:
    if kind == "Q8_0":
        scales = (np.abs(groups).max(axis=1, keepdims=True) / 127).astype(np.float16)
        codes = _codes(groups, scales).clip(-127, 127).astype(np.int8).view(np.uint8)
    elif kind == "Q4_0":
        extreme = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)
        scales = (extreme / -8).astype(np.float16)
        fours = (_codes(groups, scales) + 8).clip(0, 15).astype(np.uint8)
        codes = fours[:, :16] | (fours[:, 16:] << 4)
    else:
        raise ValueError(kind)
    return np.concatenate([scales.view(np.uint8).reshape(-1, 2), codes], axis=1).tobytes()


def _codes(groups: Any, scales: Any) -> Any:
    divisors = scales.astype(np.float32)
    return np.rint(groups / np.where(divisors == 0, 1, divisors))


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Raw]) -> Path:
    """Write one file."""
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        kind, written = value_bytes(value)
        header += text(key) + struct.pack("<I", kind) + written
    body = b""
    for name, tensor in tensors.items():
        header += tensor_info(name, tensor.shape, NUMBERS[tensor.type], len(body))
        body += tensor.data + b"\0" * (-len(tensor.data) % ALIGNMENT)
        wanted = TYPES[NUMBERS[tensor.type]].row_bytes(int(np.prod(tensor.shape)))
        assert len(tensor.data) == wanted, name
    path.write_bytes(header + b"\0" * (-len(header) % ALIGNMENT) + body)
    return path


def text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def tensor_info(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    """Return one row of the table of tensors."""
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


def value_bytes(value: Any) -> tuple[int, bytes]:
    """Return (type, bytes) of a metadata value."""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return (4, struct.pack("<I", value)) if 0 <= value < 2**32 else (11, struct.pack("<q", value))
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return 8, text(value)
    kinds = {value_bytes(item)[0] for item in value} or {4}
    if kinds <= {4, 11} and any(item < 0 for item in value):  # a list of numbers, some of them negative
        return 9, struct.pack("<IQ", 5, len(value)) + struct.pack(f"<{len(value)}i", *value)
    (kind,) = kinds
    return 9, struct.pack("<IQ", kind, len(value)) + b"".join(value_bytes(item)[1] for item in value)
