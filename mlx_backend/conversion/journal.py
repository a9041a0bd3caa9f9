"""The journal of a conversion: the plan of an output folder, and which of its files are whole. No MLX.

It is a file of JSON lines in the folder itself, and marks that the folder is no model yet. A line is either whole or
not counted, so a process can be killed at any point.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_backend.conversion.errors import ConversionError
from mlx_backend.conversion.shards import PART, sync_folder

FOLDER = ".conversion"
_FILE = "journal.jsonl"
SUMMARY = "conversion.json"


@dataclass(frozen=True, slots=True)
class Done:
    """A weight file that is whole: its SHA-256, and the measurements of its tensors."""

    size: int
    sha256: str
    errors: Mapping[str, float]


class Journal:
    """The journal of one output folder, locked while it is open."""

    def __init__(self, out: Path, plan: Mapping[str, Any]) -> None:
        """Open or begin the conversion of `plan` in the folder `out`. Raises ConversionError, OSError.

        `plan` holds, in JSON, everything that the bytes of the output depend on.
        """
        self.done: dict[str, Done] = {}
        self._out, self._plan = out, json.loads(json.dumps(plan))
        self._file = self._open()
        try:
            self._read()
        except BaseException:
            os.close(self._file)
            raise

    def add(self, name: str, done: Done) -> None:
        """Record that a file is whole. Raises OSError."""
        self._append({"file": name, "size": done.size, "sha256": done.sha256, "errors": dict(done.errors)})
        self.done[name] = done

    def remove(self) -> None:
        """Remove the journal: the folder is a model. Raises OSError."""
        shutil.rmtree(self._out / FOLDER)
        sync_folder(self._out)

    def close(self) -> None:
        os.close(self._file)

    def _open(self) -> int:
        path = self._out / FOLDER / _FILE
        if not path.exists():
            check_free(self._out)
            path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            raise ConversionError(
                f"another process converts into {self._out}; wait for it, or choose another --out"
            ) from None
        return file

    def _read(self) -> None:
        with os.fdopen(os.dup(self._file), "rb") as stream:
            stream.seek(0)
            raw = stream.read()
        whole, _, rest = raw.rpartition(b"\n")
        if rest:  # a line that a kill cut off
            os.ftruncate(self._file, len(raw) - len(rest))
        try:
            self._take([json.loads(line) for line in whole.splitlines()])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConversionError(
                f"{self._out / FOLDER} holds no journal of a conversion; delete {self._out}"
            ) from None

    def _take(self, lines: list[Any]) -> None:
        """Take over what an earlier try has recorded. Raises ConversionError."""
        if not lines:
            self._append({"plan": self._plan})
            return
        if difference := _difference(lines[0]["plan"], self._plan):
            raise ConversionError(
                f"{self._out} holds a conversion that was begun differently ({difference}); go on as it was "
                "begun, delete the folder, or choose another --out"
            )
        for line in lines[1:]:
            path = self._out / line["file"]
            if path.is_file() and path.stat().st_size == line["size"]:
                self.done[line["file"]] = Done(line["size"], line["sha256"], line["errors"])

    def _append(self, line: Mapping[str, Any]) -> None:
        os.write(self._file, (json.dumps(line) + "\n").encode())
        os.fsync(self._file)


def check_free(out: Path) -> None:
    """Raise ConversionError if `out` holds anything that is not part of a conversion begun here."""
    if out.exists() and not out.is_dir():
        raise ConversionError(f"{out} is a file; choose another --out")
    if not out.is_dir() or is_begun(out):
        return
    held = sorted(each.name for each in out.iterdir() if each.name != FOLDER)
    if "config.json" in held:
        raise ConversionError(f"{out} holds a model already; choose another --out, or delete the folder")
    if held:
        raise ConversionError(f"{out} is not empty ({held[0]}); choose another --out, or delete the folder")


def is_begun(out: Path) -> bool:
    """Return whether a folder holds an unfinished conversion."""
    return (out / FOLDER / _FILE).exists()


def finished_plan(out: Path) -> Any:
    """Return the plan of a finished conversion in a folder; None if there is none."""
    try:
        document = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_whole = (out / "config.json").is_file() and isinstance(document, dict)
    return document.get("plan") if is_whole else None


def remove_parts(out: Path) -> None:
    """Delete half-written files. Raises OSError."""
    for path in out.glob(f"*{PART}"):
        path.unlink()


def _difference(begun: Any, wanted: Any, name: str = "") -> str | None:
    """Return a description of where two plans differ; None if they do not."""
    if isinstance(begun, dict) and isinstance(wanted, dict):
        keys = sorted(begun.keys() | wanted.keys())
        found = (_difference(begun.get(key), wanted.get(key), f"{name}.{key}" if name else key) for key in keys)
        return next((each for each in found if each), None)
    return None if begun == wanted else f"{name}: {json.dumps(begun)[:40]}, now {json.dumps(wanted)[:40]}"
