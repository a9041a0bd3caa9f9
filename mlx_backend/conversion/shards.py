"""Weight files to be written: the tensors of each and their offsets; a file written in pieces. No MLX.

All of a file except its tensors' bytes is known before anything is computed, so the predicted size is the size that is
written. A file has its name only when it is whole and on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_backend.conversion.headers import ITEM_BYTES, Tensor

SHARD_BYTES = 1 << 30
"""Approximate size of a file: a kill costs at most the work for one file."""
PART = ".part"
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Shard:
    """A weight file: its header, as bytes, and its tensors by name."""

    name: str
    head: bytes
    tensors: Mapping[str, Tensor]
    units: tuple[str, ...]
    """Keys of the units that these tensors belong to, in order."""

    @property
    def size(self) -> int:
        return len(self.head) + sum(each.end - each.begin for each in self.tensors.values())


@dataclass(frozen=True, slots=True)
class Unit:
    """Tensors that stay in one file: (name, dtype, shape) of each."""

    key: str
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]

    @property
    def num_bytes(self) -> int:
        return sum(_num_bytes(dtype, shape) for _, dtype, shape in self.tensors)


def lay_out(units: Iterable[Unit], most_bytes: int = SHARD_BYTES) -> tuple[Shard, ...]:
    """Divide units, in order, among files of at most `most_bytes`; a larger unit has a file of its own."""
    groups: list[list[Unit]] = []
    filled = 0
    for unit in units:
        if not groups or filled + unit.num_bytes > most_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(unit)
        filled += unit.num_bytes
    if len(groups) == 1:
        return (_shard("model.safetensors", groups[0]),)
    return tuple(
        _shard(f"model-{place:05}-of-{len(groups):05}.safetensors", group) for place, group in enumerate(groups, 1)
    )


def _num_bytes(dtype: str, shape: Sequence[int]) -> int:
    number = ITEM_BYTES[dtype]
    for size in shape:
        number *= size
    return number


def _shard(name: str, units: Sequence[Unit]) -> Shard:
    tensors, end = {}, 0
    for unit in units:
        for key, dtype, shape in sorted(unit.tensors, key=lambda each: -ITEM_BYTES[each[1]]):
            begin, end = end, end + _num_bytes(dtype, shape)
            tensors[key] = Tensor(key, dtype, tuple(shape), begin, end)
    entries = {
        key: {"dtype": each.dtype, "shape": list(each.shape), "data_offsets": [each.begin, each.end]}
        for key, each in tensors.items()
    }
    raw = json.dumps({"__metadata__": {"format": "mlx"}, **entries}, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return Shard(name, len(raw).to_bytes(8, "little") + raw, tensors, tuple(unit.key for unit in units))


class PartFile:
    """A weight file while it is written. Leaves a file that ends in `.part` behind if it is not finished."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self._folder, self._shard = folder, shard
        self._path = folder / (shard.name + PART)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._written = 0
        try:
            self._write(0, shard.head)
        except OSError:
            self.close()
            raise

    def put(self, name: str, data: memoryview | bytes, at: int = 0) -> None:
        """Write bytes of a tensor, from its byte `at` on. Raises OSError."""
        tensor = self._shard.tensors[name]
        if at + len(data) > tensor.end - tensor.begin:
            raise ValueError(f"{name} is {tensor.end - tensor.begin} bytes long")
        self._write(len(self._shard.head) + tensor.begin + at, data)

    def finish(self) -> str:
        """Give the whole file its name, once it is on the disk, and return its SHA-256. Raises OSError."""
        if self._written != self._shard.size:
            raise ValueError(f"{self._shard.name}: {self._written} of {self._shard.size} bytes are written")
        os.fsync(self._file)
        digest = hashlib.sha256()
        for at in range(0, self._shard.size, _PIECE_BYTES):
            digest.update(os.pread(self._file, _PIECE_BYTES, at))
        self.close()
        os.replace(self._path, self._folder / self._shard.name)
        sync_folder(self._folder)
        return digest.hexdigest()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, at: int, data: memoryview | bytes) -> None:
        view = memoryview(data)
        self._written += len(view)
        while view:
            done = os.pwrite(self._file, view[: 1 << 28], at)
            view, at = view[done:], at + done


def write_file(path: Path, data: bytes) -> None:
    """Write a small file, whole or not at all, and sync it to the disk. Raises OSError."""
    part = path.with_name(path.name + PART)
    with part.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to the disk. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
