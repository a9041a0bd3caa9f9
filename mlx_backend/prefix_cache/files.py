"""A block as a file: a header, the arrays' bytes, and a checksum of each. Written atomically.

    magic, version · length of the header · header (JSON) · its digest · bytes · their digest

No MLX: arrays are bytes here, and the header gives their meaning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

SUFFIX = ".kv"
UNFINISHED = ".part"
_MAGIC = b"PIPPINKV"
VERSION = 1
_START = struct.Struct("<8sHI")
_DIGEST_BYTES = 16
_MOST_HEADER_BYTES = 1 << 26


class DamagedBlock(Exception):
    """The file is not a whole block of this version."""


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a block's file. `arrays`: whatever its store needs to read the bytes."""

    id: bytes
    parent: bytes
    start: int
    """Position of its first token."""
    token_ids: tuple[int, ...]
    has_state: bool
    is_system: bool
    arrays: Any
    num_bytes: int
    """Bytes of all arrays."""


def file_bytes(header: Header) -> int:
    """Return the size of a block's file."""
    return len(_encoded(header)) + header.num_bytes + 2 * _DIGEST_BYTES


def _encoded(header: Header) -> bytes:
    fields = {
        "id": header.id.hex(),
        "parent": header.parent.hex(),
        "start": header.start,
        "token_ids": header.token_ids,
        "has_state": header.has_state,
        "is_system": header.is_system,
        "arrays": header.arrays,
        "num_bytes": header.num_bytes,
    }
    text = json.dumps(fields, separators=(",", ":")).encode()
    return _START.pack(_MAGIC, VERSION, len(text)) + text


def write_block(path: Path, header: Header, buffers: Sequence[memoryview]) -> int:
    """Write a file that only its owner can read, renamed once it is whole; return its size. Raises OSError."""
    start = _encoded(header)
    unfinished = path.with_suffix(UNFINISHED)
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    try:
        with open(unfinished, "wb", opener=_private) as file:
            file.write(start + _digest(start))
            for buffer in buffers:
                digest.update(buffer)
                file.write(buffer)
            file.write(digest.digest())
            size = file.tell()
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    return size


def read_header(path: Path) -> Header:
    """Read the header without the arrays, checking the file's size. Raises DamagedBlock and OSError."""
    with path.open("rb") as file:
        header, before = _read_header(file)
        expected = before + header.num_bytes + _DIGEST_BYTES
        if os.fstat(file.fileno()).st_size != expected:
            raise DamagedBlock("its size is not what its header says")
    return header


def read_block(path: Path) -> tuple[Header, memoryview]:
    """Read the header and the arrays' bytes, and check them. Raises DamagedBlock and OSError."""
    with path.open("rb") as file:
        header, _ = _read_header(file)
        content = file.read(header.num_bytes + _DIGEST_BYTES + 1)
    data, digest = memoryview(content)[: header.num_bytes], content[header.num_bytes :]
    if digest != _digest(data):
        raise DamagedBlock("its bytes are not those that were written")
    return header, data


def _read_header(file: IO[bytes]) -> tuple[Header, int]:
    start = file.read(_START.size)
    if len(start) != _START.size:
        raise DamagedBlock("it is too short")
    magic, version, length = _START.unpack(start)
    if magic != _MAGIC or version != VERSION or length > _MOST_HEADER_BYTES:
        raise DamagedBlock("it is not a block of this version")
    text = file.read(length)
    if file.read(_DIGEST_BYTES) != _digest(start + text):
        raise DamagedBlock("its header is not what was written")
    try:
        header = _parsed(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedBlock("its header does not say what it should") from error
    return header, file.tell()


def _parsed(fields: Mapping[str, Any]) -> Header:
    """Return the header. Raises ValueError, KeyError, TypeError or AttributeError if these are not a block's fields."""
    numbers = [fields["start"], fields["num_bytes"], *fields["token_ids"]]
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise ValueError("not a number")
    if any(token_id >= 1 << 32 for token_id in fields["token_ids"]):
        raise ValueError("not a token")
    return Header(
        id=bytes.fromhex(fields["id"]),
        parent=bytes.fromhex(fields["parent"]),
        start=fields["start"],
        token_ids=tuple(fields["token_ids"]),
        has_state=fields["has_state"],
        is_system=fields["is_system"],
        arrays=fields["arrays"],
        num_bytes=fields["num_bytes"],
    )


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
