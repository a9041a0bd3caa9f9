"""Read the rows of a GGUF file's tensor, a few megabytes at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from server.importing.affine import Bytes
from server.importing.blueprint import Order
from server.importing.gguf_file import Tensor
from server.importing.problems import CannotImport

PIECE_BYTES = 1 << 20


def read_whole(tensor: Tensor) -> Bytes:
    """Return all rows of a tensor as bytes, (rows, bytes per row). Raises CannotImport."""
    with closing(_File(tensor.file)) as file:
        return file.rows(tensor, 0, tensor.num_rows)


def read_rows(tensor: Tensor, order: Order | None = None, piece_bytes: int = PIECE_BYTES) -> Iterator[Bytes]:
    """Yield the rows of a tensor in pieces of at least one row. Raises CannotImport.

    `order`: the order of rows; if given, the tensor is read as a whole.
    """
    if order is not None:
        yield read_whole(tensor)[order]
        return
    at_once = max(1, piece_bytes // tensor.row_bytes)
    with closing(_File(tensor.file)) as file:
        for first in range(0, tensor.num_rows, at_once):
            yield file.rows(tensor, first, min(at_once, tensor.num_rows - first))


class _File:
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise CannotImport(f"{path} cannot be read: {error.strerror or error}") from None

    def rows(self, tensor: Tensor, first: int, number: int) -> Bytes:
        found = np.empty(number * tensor.row_bytes, np.uint8)
        view, done = memoryview(found.data), 0
        try:
            while done < len(view):
                read = os.preadv(self._handle, [view[done:]], tensor.offset + first * tensor.row_bytes + done)
                if read == 0:
                    raise CannotImport(f"{self._path} has become shorter while it was read")
                done += read
        except OSError as error:
            raise CannotImport(f"{self._path} cannot be read: {error.strerror or error}") from None
        return found.reshape(number, tensor.row_bytes)

    def close(self) -> None:
        os.close(self._handle)
