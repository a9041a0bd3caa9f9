"""The SSD tier's folder and the thread that reads and writes it. A failure here is a miss and a line in the log.

    <dir>/lock                  held by the process that writes
    <dir>/<model>/about.json    describes the blocks in this folder
    <dir>/<model>/<id>.kv       a block (files.py)

The I/O thread owns every file. The device thread submits jobs, and reads their results with `results`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import queue
import re
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_backend.prefix_cache.files import (
    SUFFIX,
    UNFINISHED,
    DamagedBlock,
    Header,
    read_block,
    read_header,
    write_block,
)

logger = logging.getLogger("pippin.prefix_cache")

_ID = re.compile(r"[0-9a-f]{32}")
"""Names of model folders and block files; anything else is foreign."""
_PAUSE_S = 30.0
"""Pause after a failed write: a full disk does not recover at once."""
_CLOSE_S = 10.0


@dataclass(frozen=True, slots=True)
class Written:
    """A block was written, or (None) could not be."""

    id: bytes
    num_bytes: int | None


@dataclass(frozen=True, slots=True)
class Read:
    """A block's header and bytes; None if it was damaged or could not be read."""

    id: bytes
    block: tuple[Header, memoryview] | None


class DiskTier:
    """The blocks of one model in a folder. `wake` is called from the I/O thread when `results` has something."""

    def __init__(self, folder: Path, model: str, about: dict[str, Any], wake: Callable[[], None]) -> None:
        self._root, self._folder, self._wake = folder, folder / model, wake
        self._about = about
        self._lock: int | None = None
        self._jobs: queue.SimpleQueue[Callable[[], Written | Read | None] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Written | Read] = queue.SimpleQueue()
        self._paused_until = 0.0
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="prefix-cache", daemon=True)

    # ---- the device thread ----

    def open(self) -> list[tuple[Header, int, float]]:
        """Return every whole block in the folder: its header, its file's size and time of last use; start the thread.

        Removes damaged, foreign or half-written blocks. Raises OSError if the folder cannot be used.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = locked(self._root)
        _write_about(self._folder, self._about)
        for path in self._ours("*", UNFINISHED):
            _remove(path)
        found = list(self._scan())
        self._thread.start()
        return found

    def make_room_beside(self, own_bytes: int, max_bytes: int) -> int:
        """Remove the oldest blocks of other models until all fits; return the bytes of those that stay."""
        others = [each for each in _stats(self._ours("*", SUFFIX)) if each[0].parent != self._folder]
        staying = sum(size for _, size, _ in others)
        for path, size, _ in sorted(others, key=lambda each: each[2]):
            if own_bytes + staying <= max_bytes:
                break
            _remove(path)
            staying -= size
        return staying

    def write(self, header: Header, buffers: Sequence[memoryview]) -> None:
        self._jobs.put(lambda: self._write(header, buffers))

    def read(self, block_ids: Iterable[bytes]) -> None:
        for block_id in block_ids:
            self._jobs.put(lambda block_id=block_id: self._read(block_id))  # type: ignore[misc]

    def remove(self, block_ids: Iterable[bytes]) -> None:
        paths = [self._path(block_id) for block_id in block_ids]
        if paths:
            self._jobs.put(lambda: _remove_all(paths))

    def used(self, block_ids: Iterable[bytes]) -> None:
        """Record the use of blocks on disk, for the eviction order of later runs."""
        paths = [self._path(block_id) for block_id in block_ids]
        if paths:
            self._jobs.put(lambda: _mark_used(paths))

    @property
    def has_results(self) -> bool:
        return not self._results.empty()

    def results(self) -> Iterator[Written | Read]:
        """Yield the results since the last call."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._results.get_nowait()

    def close(self) -> None:
        """Write waiting blocks, for a limited time, and release the folder."""
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)
        self._is_closing = True
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ---- the I/O thread ----

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._is_closing:
            result = job()
            if result is not None:
                self._results.put(result)
                self._wake()

    def _write(self, header: Header, buffers: Sequence[memoryview]) -> Written:
        if time.monotonic() < self._paused_until:
            return Written(header.id, None)
        try:
            return Written(header.id, write_block(self._path(header.id), header, buffers))
        except (OSError, ValueError, BufferError, MemoryError) as error:
            logger.warning("the prefix cache cannot write to %s (%s); next try in %.0f s", self._root, error, _PAUSE_S)
            self._paused_until = time.monotonic() + _PAUSE_S
            return Written(header.id, None)

    def _read(self, block_id: bytes) -> Read:
        path = self._path(block_id)
        try:
            header, data = read_block(path)
            if header.id != block_id:
                raise DamagedBlock("it is another block")
            return Read(block_id, (header, data))
        except (OSError, DamagedBlock, ValueError, KeyError, TypeError, MemoryError) as error:
            _refuse(path, error)
            return Read(block_id, None)

    def _path(self, block_id: bytes) -> Path:
        return self._folder / (block_id.hex() + SUFFIX)

    def _ours(self, model: str, suffix: str) -> Iterator[Path]:
        """Yield the files with our names, in folders with our names."""
        for path in self._root.glob(f"{model}/*{suffix}"):
            if _ID.fullmatch(path.parent.name) and _ID.fullmatch(path.stem):
                yield path

    def _scan(self) -> Iterator[tuple[Header, int, float]]:
        for path, size, used_at in _stats(self._ours(self._folder.name, SUFFIX)):
            try:
                header = read_header(path)
                if header.id.hex() != path.stem:
                    raise DamagedBlock("it is another block")
            except (OSError, DamagedBlock, ValueError, KeyError, TypeError) as error:
                _refuse(path, error)
                continue
            yield header, size, used_at


def _stats(paths: Iterable[Path]) -> Iterator[tuple[Path, int, float]]:
    for path in paths:
        with contextlib.suppress(OSError):
            found = path.stat()
            if stat.S_ISREG(found.st_mode):  # opening a pipe would block forever
                yield path, found.st_size, found.st_mtime


class FolderInUse(OSError):
    """Another process holds the folder's lock."""


def locked(folder: Path) -> int:
    """Return the folder's open lock file; closing it releases the folder. Raises FolderInUse and OSError."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise FolderInUse("another process uses it") from error
    return lock


def _write_about(folder: Path, about: dict[str, Any]) -> None:
    path = folder / "about.json"
    text = json.dumps(about, indent=2, sort_keys=True, default=str)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == text:
            return
    with contextlib.suppress(OSError):  # for people; nothing depends on it
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)


def _refuse(path: Path, error: Exception) -> None:
    if isinstance(error, FileNotFoundError):
        logger.warning("the prefix cache has lost %s", path.name)
        return
    logger.warning("the prefix cache removes %s: %s", path.name, error)
    _remove(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _remove_all(paths: Iterable[Path]) -> None:
    for path in paths:
        _remove(path)


def _mark_used(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            os.utime(path)
