"""Journal of a run of the kit: a line on the disk before each step and after it, so that a panic shows where it was.

JSON lines beside the result, each synchronized before the step goes on. After a restart of the machine the run goes on
with the step after the one that was open.
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
    """What a journal says of the run before."""

    identity: Mapping[str, Any] | None = None
    """None: there was none."""
    results: dict[str, Result] = field(default_factory=dict)
    open_step: str | None = None
    """The step that began and did not end."""
    last_progress: str = ""
    boot: str = ""
    """The start of the machine at which it began."""
    is_finished: bool = False


def read_past(path: Path) -> Past:
    """Read a journal. A last line that is cut off does not count."""
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
    """The result of the step that was open when the run ended."""
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
        with contextlib.suppress(ValueError):  # the last line of a machine that has stopped
            event = json.loads(line)
            if isinstance(event, dict):
                yield event


class Journal:
    """Appends to the file."""

    def __init__(self, path: Path, *, is_fresh: bool) -> None:
        """Raises OSError; BlockingIOError while another run writes it. `is_fresh`: forget what is there."""
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._handle)
            raise
        if is_fresh:
            os.ftruncate(self._handle, 0)
        if os.fstat(self._handle).st_size:
            os.write(self._handle, b"\n")  # in case that the last line was cut off

    def write(self, event: str, **fields: Any) -> None:
        """Append a line; it is on the disk when this returns."""
        os.write(self._handle, json.dumps({"event": event, **fields}).encode() + b"\n")
        synchronize(self._handle)

    def close(self) -> None:
        os.close(self._handle)


def synchronize(handle: int) -> None:
    """Have what was written on the disk itself: macOS's fsync stops at the drive's cache."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):  # a file system without it
            fcntl.fcntl(handle, full)
            return
    os.fsync(handle)


def write_result(path: Path, document: Mapping[str, Any]) -> None:
    """Write the result in one piece: there is the old file or the new one, never half of one."""
    draft = path.with_name(f".{path.name}.new")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=2)
        file.write("\n")
        file.flush()
        synchronize(file.fileno())
    draft.replace(path)
