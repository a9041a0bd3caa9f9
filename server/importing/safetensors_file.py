"""Write a safetensors file from tensors in pieces: to a `.part`, synced to disk, then renamed.

Only the pieces are in memory. Types are identified only by their tags.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from server.importing.parts import Output, Part

_READ_BYTES = 8 << 20
Progress = Callable[[int], None]


def header_of(outputs: Sequence[Output]) -> bytes:
    """Return the header of a file with these tensors, one after the other."""
    described: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for output in outputs:
        begin, end = end, end + output.num_bytes
        described[output.name] = {"dtype": output.tag, "shape": list(output.shape), "data_offsets": [begin, end]}
    written = json.dumps(described, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    return len(written).to_bytes(8, "little") + written


def write(file: Path, parts: Sequence[Part], done: Progress = lambda _: None) -> str:
    """Write a file, and return its SHA-256. `done` is called with bytes as they are written. Raises OSError."""
    part_file = file.with_name(file.name + ".part")
    outputs = [output for part in parts for output in part.outputs]
    try:
        with part_file.open("wb") as stream:
            start = stream.write(header_of(outputs))
            for part in parts:
                _write_part(stream.fileno(), start, part, done)
                start += part.num_bytes
            stream.flush()
            os.fsync(stream.fileno())
        digest = digest_of(part_file)
        os.replace(part_file, file)
    except BaseException:
        part_file.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)
    return digest


def _write_part(handle: int, start: int, part: Part, done: Progress) -> None:
    places, begin = [], start
    for output in part.outputs:
        places.append(begin)
        begin += output.num_bytes
    ends = [*places[1:], begin]
    for pieces in part.pieces():
        for number, piece in enumerate(pieces):
            assert places[number] + len(piece) <= ends[number], part.outputs[number]
            places[number] += _write_at(handle, piece, places[number])
        done(sum(map(len, pieces)))
    assert places == ends, part.outputs


def _write_at(handle: int, piece: bytes, place: int) -> int:
    view, written = memoryview(piece), 0
    while written < len(piece):
        written += os.pwrite(handle, view[written:], place + written)
    return written


def digest_of(file: Path, done: Progress = lambda _: None) -> str:
    """Return the SHA-256 of a file; `done` is called with bytes as they are read. Raises OSError."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(_READ_BYTES):
            digest.update(piece)
            done(len(piece))
    return digest.hexdigest()


def write_small(file: Path, content: bytes) -> str:
    """Write a whole file at once, synced to disk, and return its SHA-256. Raises OSError."""
    part_file = file.with_name(file.name + ".part")
    with part_file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part_file, file)
    sync_folder(file.parent)
    return hashlib.sha256(content).hexdigest()


def sync_folder(folder: Path) -> None:
    """Sync a folder's file names to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
