"""Journal of a run of the kit: a line on disk before and after each step, so that a panic can be located.

JSON lines beside the result, each synchronized before the step continues. After a restart of the machine, the run
resumes with the step after the interrupted one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

Result = dict[str, Any]
_MOST_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Past:
    """Content of a journal: the previous run."""

    identity: Mapping[str, Any] | None = None
    """None if there was no run."""
    results: dict[str, Result] = field(default_factory=dict)
    open_step: str | None = None
    """Step that began and did not end."""
    last_progress: str = ""
    boot: str = ""
    """Boot id of the machine when it began."""
    is_finished: bool = False


def read_past(path: Path) -> Past:
    """Read a journal. An incomplete last line is ignored."""
    past = Past()
    for event in _events(path):
        match event.get("event"):
            case "run":
                past = Past(identity=event["identity"], results=past.results)
            case "begin":
                past = replace(past, open_step=event["step"], last_progress="", boot=event["boot"])
            case "progress":
                past = replace(past, last_progress=event["text"])
            case "end":
                past.results[event["step"]] = event["result"]
                past = replace(past, open_step=None)
            case "stopped":
                past = replace(past, open_step=None)
            case "finished":
                past = replace(past, is_finished=True)
    return past


def interrupted(past: Past, boot: str) -> Result:
    """Return the result of the step that was open when the run ended."""
    restarted = past.boot != boot
    detail = "the machine has restarted since" if restarted else "the run was ended"
    where = f"; last heard of: {past.last_progress}" if past.last_progress else ""
    return {"status": "interrupted", "detail": detail + where, "restarted": restarted}


def _events(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES)
    except OSError:
        return
    for line in text.split(b"\n"):
        with contextlib.suppress(ValueError):  # the last line before the machine stopped
            event = json.loads(line)
            if isinstance(event, dict):
                yield event


class Journal:
    """Writer that appends to the journal."""

    def __init__(self, path: Path, *, is_fresh: bool) -> None:
        """Open the file.

        Raises OSError; BlockingIOError if another run has it open. `is_fresh`: discard its content.
        """
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._handle)
            raise
        if is_fresh:
            os.ftruncate(self._handle, 0)
        if os.fstat(self._handle).st_size:
            os.write(self._handle, b"\n")  # in case the last line is incomplete

    def write(self, event: str, **fields: Any) -> None:
        """Append a line and synchronize it to disk."""
        os.write(self._handle, json.dumps({"event": event, **fields}).encode() + b"\n")
        synchronize(self._handle)

    def close(self) -> None:
        os.close(self._handle)


def synchronize(handle: int) -> None:
    """Flush writes to the drive itself: macOS's fsync stops at the drive's cache."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):  # not supported by the file system
            fcntl.fcntl(handle, full)
            return
    os.fsync(handle)


def write_result(path: Path, document: Mapping[str, Any]) -> None:
    """Write the result atomically: the file is the old one or the new one, never partial."""
    draft = path.with_name(f".{path.name}.new")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=2)
        file.write("\n")
        file.flush()
        synchronize(file.fileno())
    draft.replace(path)
