"""Inspection of the SSD tier's folder: its models, its blocks and whether they are whole; and clearing it.

Pure functions of a folder, for processes other than the server that writes it. disk.py describes the layout. Files and
folders with other names are foreign: they are neither read nor removed. No MLX, no arrays.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_backend.prefix_cache.disk import FolderInUse as FolderInUse
from mlx_backend.prefix_cache.disk import locked
from mlx_backend.prefix_cache.files import SUFFIX, UNFINISHED, DamagedBlock, Header, read_block, read_header
from mlx_backend.prefix_cache.identity import chain_id

_ID = re.compile(r"[0-9a-f]{32}")
ABOUT = "about.json"
_MOST_ABOUT_BYTES = 1 << 20
_UNREADABLE = (DamagedBlock, ValueError, KeyError, TypeError, OverflowError, MemoryError)
"""Errors raised by reading a file that is no block."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The blocks of one model with one configuration."""

    path: Path
    about: dict[str, Any] = field(default_factory=dict)
    """Description of the blocks; empty if its file cannot be read."""
    num_blocks: int = 0
    num_tokens: int = 0
    num_bytes: int = 0
    """Bytes of the files."""
    used_at: float | None = None
    """Seconds since the epoch; None: there is no block."""
    num_unreadable: int = 0
    """Blocks without a readable header."""

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def model(self) -> str | None:
        name = self.about.get("model")
        return name if isinstance(name, str) and name else None

    @property
    def kv_bits(self) -> tuple[int | None, int | None] | None:
        """Bits of keys and of values, None of them for full precision; None: unknown."""
        kept = self.about.get("kv_cache")
        if not isinstance(kept, dict):
            return None
        bits = [kept.get("bits") if kept.get(name) is None else kept[name] for name in ("key_bits", "value_bits")]
        return (bits[0], bits[1]) if all(each is None or type(each) is int for each in bits) else None


@dataclass(frozen=True, slots=True)
class Finding:
    """A useless file, and the reason."""

    path: Path
    reason: str
    is_removable: bool = True
    """False for a file that could not be read: it may be whole."""


@dataclass(frozen=True, slots=True)
class Cleared:
    """Result of `clear`. `num_foreign`: other files in the folders, which stay."""

    num_blocks: int
    num_bytes: int
    num_foreign: int


@contextlib.contextmanager
def held(root: Path) -> Iterator[None]:
    """Keep every server from writing to the folder meanwhile. Raises FolderInUse and OSError."""
    lock = locked(root)
    try:
        yield
    finally:
        os.close(lock)


def models(root: Path) -> list[ModelFolder]:
    """Return the stored models, the last used first. Raises OSError if the folder cannot be read."""
    return sorted((_describe(path) for path in _model_paths(root)), key=lambda each: -(each.used_at or 0.0))


def clear(folders: Iterable[ModelFolder], *, is_held: bool) -> Cleared:
    """Remove all blocks. If a server may be running (not `is_held`), the folders themselves stay for it.

    Raises OSError for files that cannot be removed.
    """
    num_blocks = num_bytes = num_foreign = 0
    for folder in folders:
        for path, size, _ in _files(folder.path, SUFFIX, UNFINISHED):
            with contextlib.suppress(FileNotFoundError):  # a server was quicker
                path.unlink()
                num_blocks, num_bytes = num_blocks + (path.suffix == SUFFIX), num_bytes + size
        if is_held:
            (folder.path / ABOUT).unlink(missing_ok=True)
            num_foreign += sum(1 for _ in folder.path.iterdir())
            with contextlib.suppress(OSError):  # not empty: the foreign files stay
                folder.path.rmdir()
    return Cleared(num_blocks, num_bytes, num_foreign)


def verify(folder: ModelFolder, *, is_held: bool, progress: Callable[[int], None] = lambda _: None) -> list[Finding]:
    """Read every block, check both of its digests and its id, and that its parent is there, too.

    `progress` is called with each file's bytes. If a server may be running (not `is_held`), files that have gone
    meanwhile or are half-written are no findings. Raises OSError if the folder cannot be read.
    """
    findings: list[Finding] = []
    whole: dict[bytes, tuple[Path, Header]] = {}
    if is_held:
        findings += [Finding(path, "it is half-written") for path, _, _ in _files(folder.path, UNFINISHED)]
    for path, size, _ in _files(folder.path, SUFFIX):
        found = _check(path)
        progress(size)
        if isinstance(found, Header):
            whole[found.id] = (path, found)
        elif found is not None and (is_held or path.exists()):
            findings.append(found)
    return findings + list(_without_parent(whole, is_held=is_held))


def remove(findings: Iterable[Finding]) -> int:
    """Remove useless files; return how many. Raises OSError."""
    paths = [finding.path for finding in findings if finding.is_removable]
    for path in paths:
        path.unlink(missing_ok=True)
    return len(paths)


def _model_paths(root: Path) -> Iterator[Path]:
    for path in sorted(root.iterdir()):
        if _ID.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            yield path


def _describe(path: Path) -> ModelFolder:
    num_tokens = num_bytes = num_unreadable = 0
    files = _files(path, SUFFIX)
    for file, size, _ in files:
        num_bytes += size
        try:
            num_tokens += len(read_header(file).token_ids)
        except (OSError, *_UNREADABLE):
            num_unreadable += 1
    used_at = max((each[2] for each in files), default=None)
    return ModelFolder(path, _read_about(path), len(files), num_tokens, num_bytes, used_at, num_unreadable)


def _read_about(path: Path) -> dict[str, Any]:
    """Return the description; empty on any error, since nothing depends on it."""
    about = path / ABOUT
    try:
        if not about.is_file() or about.stat().st_size > _MOST_ABOUT_BYTES:
            return {}
        found = json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _files(folder: Path, *suffixes: str) -> list[tuple[Path, int, float]]:
    """Return (path, size, time of last use) of the files that are named like blocks. Raises OSError."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix not in suffixes or not _ID.fullmatch(path.stem):
            continue
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):  # opening a pipe would block forever
                found.append((path, status.st_size, status.st_mtime))
    return found


def _check(path: Path) -> Header | Finding | None:
    """Return the header of a whole block, the finding for a damaged one, or None if it has gone."""
    try:
        read_header(path)  # checks the size before everything is read
        header, data = read_block(path)
        data.release()
        if header.id.hex() != path.stem:
            return Finding(path, "it is another block")
        if chain_id(header.parent, header.token_ids) != header.id:
            return Finding(path, "its id is not that of its tokens")
    except FileNotFoundError:
        return None
    except OSError as error:
        return Finding(path, f"it cannot be read: {error.strerror or error}", is_removable=False)
    except _UNREADABLE as error:
        return Finding(path, str(error) or type(error).__name__)
    return header


def _without_parent(whole: dict[bytes, tuple[Path, Header]], *, is_held: bool) -> Iterator[Finding]:
    """Yield findings for blocks with a missing or useless parent."""
    for path, header in sorted(whole.values(), key=lambda each: each[1].start):
        if header.start == 0:
            continue
        parent = whole.get(header.parent)
        if parent is None or parent[1].start + len(parent[1].token_ids) != header.start:
            del whole[header.id]
            if is_held or path.exists():
                yield Finding(path, "what it follows is not there")
