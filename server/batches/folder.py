"""The folder of a server's files and batches: its layout, written so that a kill never leaves a partial record.

files/ID  files/ID.json      content and record of a file; it exists only with both
batches/ID.json              record of a batch
running/ID.output  .errors   answers of a batch that has not ended
partial/                     uploads in progress; removed at the next start
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

logger = logging.getLogger("pippin.batches")

R = TypeVar("R")


class FolderError(OSError):
    """The folder cannot be used; the message is one line."""


class Folder:
    """The folder of one server, locked while it is open."""

    def __init__(self, path: Path) -> None:
        """Create and lock the folder. Raises FolderError."""
        self.path = path
        self.files, self.batches = path / "files", path / "batches"
        self.running, self.partial = path / "running", path / "partial"
        try:
            for each in (path, self.files, self.batches, self.running, self.partial):
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FolderError(f"batches.dir {path}: {error.strerror or error}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise FolderError(f"batches.dir {path}: another server uses this folder; give each its own") from None
        try:
            for left in (*self.partial.iterdir(), *self.files.glob("*.part"), *self.batches.glob("*.part")):
                left.unlink()
        except OSError as error:
            self.close()
            raise FolderError(f"batches.dir {path}: {error.strerror or error}") from None

    def close(self) -> None:
        """Unlock the folder."""
        os.close(self._lock)

    def new_partial(self) -> tuple[int, Path]:
        """Return an empty file for an upload: its descriptor and its path. Raises OSError."""
        file, name = tempfile.mkstemp(dir=self.partial)
        return file, Path(name)


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record atomically. Raises OSError."""
    part = path.with_name(f"{path.name}.part")
    try:
        with open(part, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(json.dumps(record).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def read_records(folder: Path, build: Callable[[Mapping[str, Any]], R]) -> Iterator[R]:
    """Yield the records of a folder. Invalid ones are logged and left in place. Raises OSError."""
    for path in sorted(folder.glob("*.json")):
        try:
            fields = json.loads(path.read_bytes())
            if not isinstance(fields, dict) or fields.get("id") != path.stem:
                raise ValueError("it has another id")
            record = build(fields)
        except (ValueError, TypeError, RecursionError) as error:
            logger.error("%s is no record (%s), and is left out", path, error)
            continue
        yield record
