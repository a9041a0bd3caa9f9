"""Write the folder of an imported model: shards of weights, then the small files, config.json last.

Without config.json a folder is not a model, so an interrupted import never looks complete. A journal lists the shards
that are done: the same import continues after them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.importing.parts import Losses, Part
from server.importing.problems import CannotImport
from server.importing.safetensors_file import Progress, digest_of, header_of, sync_folder, write, write_small

SHARD_BYTES = 5 << 30
JOURNAL = "import.journal"
RECORD = "import.json"
MANIFEST = "SHA256SUMS"
_SPARE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Contents:
    """Contents of a folder to write."""

    parts: Sequence[Part]
    config: Mapping[str, Any]
    small: Mapping[str, bytes]
    """Content of the other files, by name."""
    source: Mapping[str, Any]
    """Identity of the import: its source files and options."""
    losses: Losses
    """Losses, filled while the parts are written."""

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)


class Folder:
    """Folder of one import in progress. Raises CannotImport for the folder of another import."""

    def __init__(self, path: Path, contents: Contents, shard_bytes: int = SHARD_BYTES) -> None:
        self.path = path
        self._contents = contents
        self.shards = _shards(contents.parts, shard_bytes)
        self._identity = _identity(contents, self.shards)
        self._done = self._read_journal()

    @property
    def is_complete(self) -> bool:
        """Whether this import is complete."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            record = json.loads((self.path / RECORD).read_text(encoding="utf-8"))
            return bool(record.get("identity") == self._identity) and (self.path / "config.json").is_file()
        return False

    @property
    def num_done_bytes(self) -> int:
        """Bytes of the shards written by an earlier run."""
        return sum(_num_bytes(self.shards[name]) for name in self._done)

    def write(self, done: Progress = lambda _: None) -> dict[str, str]:
        """Write what is missing, and return the digests of all files. Raises CannotImport."""
        try:
            return self._write(done)
        except OSError as error:
            reason = error.strerror or str(error)
            raise CannotImport(f"{self.path} cannot be written: {reason}; what is there is taken up again") from None

    def _write(self, done: Progress) -> dict[str, str]:
        self._check_room()
        self.path.mkdir(parents=True, exist_ok=True)
        self._write_journal()
        for name, parts in self.shards.items():
            if name not in self._done:
                self._done[name] = write(self.path / name, parts, done)
                self._write_journal()
        config = to_json(self._contents.config)
        digests = {**self._done, "config.json": hashlib.sha256(config).hexdigest()}
        small = {**self._contents.small, **self._index()}
        errors = {"relative_errors": self._contents.losses.relative()}
        small[RECORD] = to_json({"identity": self._identity, **self._contents.source, **errors})
        for name, content in small.items():
            digests[name] = write_small(self.path / name, content)
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
        write_small(self.path / MANIFEST, lines.encode())
        write_small(self.path / "config.json", config)
        (self.path / JOURNAL).unlink()
        sync_folder(self.path)
        return digests

    def _index(self) -> dict[str, bytes]:
        if len(self.shards) == 1:
            return {}
        names = {output.name: name for name, parts in self.shards.items() for part in parts for output in part.outputs}
        index = {"metadata": {"total_size": self._contents.num_bytes}, "weight_map": names}
        return {"model.safetensors.index.json": to_json(index)}

    def _check_room(self) -> None:
        at = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.is_dir())
        needed = self._contents.num_bytes - self.num_done_bytes + _SPARE_BYTES
        free = shutil.disk_usage(at).free
        if free < needed:
            raise CannotImport(f"{at} has {free / 1e9:.1f} GB free; the model needs {needed / 1e9:.1f} GB more")

    def _read_journal(self) -> dict[str, str]:
        """Return the digests of the finished shards, by name. Raises CannotImport for the folder of another import."""
        if self.is_complete:
            with contextlib.suppress(OSError):
                (self.path / JOURNAL).unlink()  # left by a run that ended between its last two steps
            return {}
        if not self.path.exists():
            return {}
        if not self.path.is_dir():
            raise CannotImport(f"{self.path} is a file; name another folder with --out")
        try:
            journal = json.loads((self.path / JOURNAL).read_text(encoding="utf-8"))
            identity, done, losses = journal["identity"], dict(journal["done"]), Losses.from_json(journal["losses"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            if any(file.name != f"{JOURNAL}.part" for file in self.path.iterdir()):
                message = "is there and holds something else; name another folder with --out"
                raise CannotImport(f"{self.path} {message}") from None
            return {}
        if identity != self._identity:
            raise CannotImport(f"{self.path} has a part of another import; remove it, or name another with --out")
        if not all(self._is_whole(name, digest) for name, digest in done.items()):
            return {}
        self._contents.losses.take(losses)
        return done

    def _is_whole(self, name: str, digest: str) -> bool:
        try:
            return name in self.shards and digest_of(self.path / name) == digest
        except OSError:
            return False

    def _write_journal(self) -> None:
        known = {"identity": self._identity, "done": self._done, "losses": self._contents.losses.as_json()}
        write_small(self.path / JOURNAL, to_json(known))


def _shards(parts: Sequence[Part], most: int) -> dict[str, list[Part]]:
    """Return the parts by file name, each file as large as allowed."""
    groups: list[list[Part]] = [[]]
    for part in parts:
        if groups[-1] and _num_bytes(groups[-1]) + part.num_bytes > most:
            groups.append([])
        groups[-1].append(part)
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{place:05}-of-{len(groups):05}.safetensors": group for place, group in enumerate(groups, 1)}


def _num_bytes(parts: Sequence[Part]) -> int:
    return sum(part.num_bytes for part in parts)


def _identity(contents: Contents, shards: Mapping[str, Sequence[Part]]) -> str:
    """Return an identity that is equal for imports with the same result."""
    digest = hashlib.sha256(to_json([contents.source, contents.config, sorted(contents.small)]))
    for content in (contents.small[name] for name in sorted(contents.small)):
        digest.update(content)
    for parts in shards.values():
        digest.update(header_of([output for part in parts for output in part.outputs]))
    return digest.hexdigest()


def to_json(value: Any) -> bytes:
    """Return a value as the content of a JSON file."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
