"""Check a model's files against the hub's record, or a SHA256SUMS in the folder.

The hub names large files by their SHA-256 and small ones by Git's SHA-1 of a blob; a download keeps those names.
Completed checks are remembered by size and time, in a small file of the user's. The content of the files is not parsed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import LoadProgress
from mlx_backend.model.checkpoint import is_needed

MANIFEST = "SHA256SUMS"
Report = Callable[[LoadProgress], None]

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_SHA256, _GIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_PIECE_BYTES = 8 << 20
_AT_ONCE = 4
"""Files read in parallel: SHA-256 on one core is slower than an SSD."""


@dataclass(frozen=True, slots=True)
class Record:
    """Expected digest of each file in a folder: SHA-256 (64 digits) or a Git blob's SHA-1 (40)."""

    basis: str
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that differs from the published one."""

    file: Path
    problem: str

    def __str__(self) -> str:
        return f"{self.file} is damaged: {self.problem}"


def find_record(folder: Path) -> Record | None:
    """Return the expected digests of `folder`, or None without a record.

    Raises ModelLoadError for a broken manifest.
    """
    manifest = folder / MANIFEST
    if manifest.is_file():
        return Record(f"{MANIFEST} of the folder", _of_model(folder, dict(_read_manifest(manifest))))
    digests = dict(_linked(folder)) or _of_model(folder, dict(_noted(folder)))
    return Record("the hub's record", digests) if digests else None


def _of_model(folder: Path, digests: Mapping[str, str]) -> dict[str, str]:
    """Leave out missing files that no model needs, such as a page about it or another format's weights."""
    return {name: digest for name, digest in digests.items() if (folder / name).exists() or is_needed(folder, name)}


def _read_manifest(manifest: Path) -> Iterator[tuple[str, str]]:
    for line in manifest.read_text(encoding="utf-8", errors="replace").splitlines():
        found = _LINE.fullmatch(line.rstrip())
        if found is None and line.strip():
            raise ModelLoadError(f"{manifest} has a line that is no SHA-256 and a name: {line[:80]!r}")
        if found is not None:
            name = found[2].removeprefix("./")
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ModelLoadError(f"{manifest} names a file that is not in its folder: {name!r}")
            yield name, found[1]


def _linked(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the digests of a snapshot in the download cache: its links lead to blobs named by their digest."""
    for path in sorted(folder.rglob("*")):
        target = Path(os.readlink(path)) if path.is_symlink() else None
        if target is not None and target.parent.name == "blobs" and _is_digest(target.name):
            yield path.relative_to(folder).as_posix(), target.name


def _noted(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the digests of a download into its own folder: each file has a note with the digest in its second line."""
    notes = folder / ".cache" / "huggingface" / "download"
    for note in sorted(notes.rglob("*.metadata")):
        lines = note.read_text(encoding="utf-8", errors="replace").splitlines()
        if len(lines) > 1 and _is_digest(lines[1]):
            yield note.relative_to(notes).as_posix().removesuffix(".metadata"), lines[1]


def _is_digest(name: str) -> bool:
    return bool(_SHA256.fullmatch(name) or _GIT.fullmatch(name))


# --- comparing


def compare(folder: Path, record: Record, report: Report = lambda _: None) -> list[Damage]:
    """Return the files of `folder` that differ from `record`, by name. What `report` raises ends it."""
    sizes = {name: _size(folder / name) for name in record.digests}
    total, done, lock = sum(size or 0 for size in sizes.values()), 0, threading.Lock()
    report(LoadProgress(total_bytes=total))

    def read(num_bytes: int) -> None:
        nonlocal done
        with lock:
            done += num_bytes
            report(LoadProgress(done_bytes=done, total_bytes=total))

    def check(name: str) -> Damage | None:
        return _compare_one(folder / name, record.digests[name], sizes[name], read)

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return [damage for damage in threads.map(check, sorted(record.digests)) if damage is not None]


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


def _compare_one(file: Path, expected: str, size: int | None, read: Callable[[int], None]) -> Damage | None:
    if size is None:
        return Damage(file, "it is not there")
    name = "SHA-256" if len(expected) == 64 else "Git's SHA-1"
    digest = hashlib.sha256() if len(expected) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    try:
        with file.open("rb") as stream:
            while piece := stream.read(_PIECE_BYTES):
                digest.update(piece)
                read(len(piece))
    except OSError as error:
        return Damage(file, f"it cannot be read ({error.strerror or error})")
    found = digest.hexdigest()
    return None if found == expected else Damage(file, f"its {name} is {found}, and should be {expected}")


# --- earlier checks


def ensure(folder: Path, *, is_repeated: bool, report: Report = lambda _: None) -> None:
    """Check the files of `folder`, unless unchanged since the last check. Raises ModelLoadError for a damaged file.

    `is_repeated`: check even if unchanged. A folder without a record passes.
    """
    record = find_record(folder)
    if record is None or (not is_repeated and is_known(folder, record)):
        return
    damaged = compare(folder, record, report)
    if damaged:
        more = f" ({len(damaged)} files are)" if len(damaged) > 1 else ""
        raise ModelLoadError(f"{damaged[0]}, by {record.basis}{more}; fetch it again: pippin pull")
    remember(folder, record)


def is_known(folder: Path, record: Record) -> bool:
    """Return whether the files were checked against this record, and have not changed since."""
    known = _read_known().get(str(folder.resolve()))
    return known is not None and known == _look(folder, record)


def remember(folder: Path, record: Record) -> None:
    """Remember that the files are intact. If that cannot be saved, they are checked again next time."""
    file = _known_file()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        known = {**_read_known(), str(folder.resolve()): _look(folder, record)}
        handle, name = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(known, stream)
        os.replace(name, file)


def _look(folder: Path, record: Record) -> dict[str, list[int | str]]:
    looks: dict[str, list[int | str]] = {}
    for name, digest in record.digests.items():
        with contextlib.suppress(OSError):
            facts = (folder / name).stat()
            looks[name] = [facts.st_size, facts.st_mtime_ns, digest]
    return looks


def _read_known() -> dict[str, dict[str, list[int | str]]]:
    try:
        known = json.loads(_known_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _known_file() -> Path:
    home = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or home) / "pippin" / "verified.json"
