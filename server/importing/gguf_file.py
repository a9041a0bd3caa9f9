"""Read the header of a GGUF file: metadata and the table of tensors, with every claimed size bounded.

The file is not trusted: counts, lengths and offsets are checked against its size before anything is stored. Tensor
data is not read here. Every problem raises BadGGUF with a one-line message.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from server.importing.gguf_types import TYPES, TensorType
from server.importing.problems import CannotImport

MAX_TENSORS = 65_536
MAX_KEYS = 16_384
MAX_HEADER_BYTES = 256 << 20
MAX_ITEMS = 4_000_000
"""Most items of one array."""
_MAX_NAME_BYTES = 1024
_MAX_DIMENSIONS = 4
_MAX_VALUES = 1 << 48
_MAX_ALIGNMENT = 1 << 20
_MAX_NESTING = 4
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SIZES = {number: struct.calcsize("<" + code) for number, code in _SCALARS.items()}
_LEAST_SIZES = {**_SIZES, _STRING: 8, _ARRAY: 12}


class BadGGUF(CannotImport):
    """The file is not a complete GGUF file; the message does not name it."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a file: `shape` in array order, row length last; `offset` from the file's beginning."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    file: Path
    offset: int

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        return self.type.row_bytes(self.shape[-1])

    @property
    def num_rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def num_bytes(self) -> int:
        return self.row_bytes * self.num_rows


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """Header of a file."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: tuple[Tensor, ...]


def is_gguf(path: Path) -> bool:
    """Return whether a file begins like a GGUF file."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) == b"GGUF"
    except OSError:
        return False


def read_header(path: Path) -> GGUFFile:
    """Return the header of one file. Raises CannotImport, naming the file."""
    try:
        with path.open("rb") as stream:
            return _Reader(path, stream).read()
    except OSError as error:
        raise CannotImport(f"{path} cannot be read: {error.strerror or error}") from None
    except BadGGUF as error:
        raise CannotImport(f"{path} is not a whole GGUF file: {error}") from None


class _Reader:
    """Sequential reader of one header."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path = path
        self._stream = stream
        self._size = path.stat().st_size
        self._position = 0

    def read(self) -> GGUFFile:
        magic, version = self._take(4), self._number("I")
        if magic != b"GGUF":
            raise BadGGUF(f"it begins with {magic!r}, not with b'GGUF'")
        if version not in (2, 3):
            is_swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
            raise BadGGUF("it is big-endian" if is_swapped else f"its version is {version}; 2 and 3 are known")
        num_tensors, num_keys = self._number("Q"), self._number("Q")
        if num_tensors > MAX_TENSORS:
            raise BadGGUF(f"it claims {num_tensors} tensors; at most {MAX_TENSORS} are read")
        if num_keys > MAX_KEYS:
            raise BadGGUF(f"it claims {num_keys} keys of metadata; at most {MAX_KEYS} are read")
        metadata = self._metadata(num_keys)
        described = [self._describe() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise BadGGUF(f"general.alignment is {alignment!r}, not a power of two up to {_MAX_ALIGNMENT}")
        start = -(-self._position // alignment) * alignment
        tensors = [self._place(start, alignment, *each) for each in described]
        _check_apart(tensors)
        return GGUFFile(self._path, metadata, tuple(tensors))

    def _metadata(self, num_keys: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._name("a key")
            if key in metadata:
                raise BadGGUF(f"the key {key!r} is there twice")
            metadata[key] = self._value(self._number("I"), key, 0)
        return metadata

    def _describe(self) -> tuple[str, tuple[int, ...], TensorType, int]:
        """Return (name, shape, type, offset) of the next tensor, with the offset as stored in the file."""
        name = self._name("a tensor's name")
        num_dimensions = self._number("I")
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            raise BadGGUF(f"tensor {name!r} has {num_dimensions} dimensions; 1 to {_MAX_DIMENSIONS} are known")
        shape = tuple(self._number("Q") for _ in range(num_dimensions))[::-1]
        number, offset = self._number("I"), self._number("Q")
        if number not in TYPES:
            raise BadGGUF(f"tensor {name!r} is of type {number}, which is not known")
        kind = TYPES[number]
        if not all(shape) or math.prod(shape) > _MAX_VALUES:
            raise BadGGUF(f"tensor {name!r} has the shape {list(shape)}")
        if shape[-1] % kind.block_values:
            raise BadGGUF(f"tensor {name!r} has rows of {shape[-1]} values; {kind} has blocks of {kind.block_values}")
        return name, shape, kind, offset

    def _place(
        self, start: int, alignment: int, name: str, shape: tuple[int, ...], kind: TensorType, offset: int
    ) -> Tensor:
        tensor = Tensor(name, shape, kind, self._path, start + offset)
        if offset % alignment:
            raise BadGGUF(f"tensor {name!r} is at {offset}, no multiple of {alignment}")
        missing = tensor.offset + tensor.num_bytes - self._size
        if missing > 0:
            raise BadGGUF(f"tensor {name!r} ends {missing} bytes after the end of the file; fetch it again")
        return tensor

    def _value(self, kind: int, key: str, depth: int) -> Any:
        if kind == _STRING:
            return self._text(MAX_HEADER_BYTES, f"the value of {key!r}")
        if kind == _ARRAY:
            return self._array(key, depth + 1)
        if kind not in _SCALARS:
            raise BadGGUF(f"the value of {key!r} is of type {kind}, which is not known")
        return self._number(_SCALARS[kind])

    def _array(self, key: str, depth: int) -> list[Any]:
        if depth > _MAX_NESTING:
            raise BadGGUF(f"the value of {key!r} is nested too deeply")
        kind, count = self._number("I"), self._number("Q")
        if kind not in _LEAST_SIZES:
            raise BadGGUF(f"the value of {key!r} is an array of type {kind}, which is not known")
        if count > MAX_ITEMS:
            raise BadGGUF(f"the value of {key!r} claims {count} items; at most {MAX_ITEMS} are read")
        self._check_room(count * _LEAST_SIZES[kind], f"the value of {key!r}")
        if kind in _SCALARS:
            return list(struct.unpack(f"<{count}{_SCALARS[kind]}", self._take(count * _SIZES[kind])))
        return [self._value(kind, key, depth) for _ in range(count)]

    def _name(self, what: str) -> str:
        name = self._text(_MAX_NAME_BYTES, what)
        if not name or not name.isprintable():
            raise BadGGUF(f"{what} is {name!r}")
        return name

    def _text(self, most: int, what: str) -> str:
        length = self._number("Q")
        if length > most:
            raise BadGGUF(f"{what} claims {length} bytes; at most {most} are read")
        self._check_room(length, what)
        return self._take(length).decode("utf-8", "replace")

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))
        return value

    def _check_room(self, size: int, what: str) -> None:
        """Raise if the rest of the file is too short, before memory is allocated."""
        if size > self._size - self._position:
            raise BadGGUF(f"{what} claims {size} bytes; the file has {self._size - self._position} more")

    def _take(self, size: int) -> bytes:
        self._position += size
        if self._position > MAX_HEADER_BYTES:
            raise BadGGUF(f"its header is longer than {MAX_HEADER_BYTES >> 20} MiB")
        found = self._stream.read(size)
        if len(found) < size:
            raise BadGGUF("it ends within its header; fetch it again")
        return found


def _check_apart(tensors: list[Tensor]) -> None:
    names = set()
    for tensor in tensors:
        if tensor.name in names:
            raise BadGGUF(f"tensor {tensor.name!r} is there twice")
        names.add(tensor.name)
    in_order = sorted(tensors, key=lambda tensor: tensor.offset)
    for before, after in pairwise(in_order):
        if before.offset + before.num_bytes > after.offset:
            raise BadGGUF(f"tensors {before.name!r} and {after.name!r} overlap")
