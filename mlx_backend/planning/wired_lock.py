"""A lock file that lets one process of a machine wire memory, with its name and the time of the first. No MLX.

The lock is the kernel's (flock) and ends with its process in any case. A process named in the file while the lock is
free has ended without unwiring; its pid may belong to another process by now and is not checked. The file is per user:
servers of several users do not see each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_backend.planning.wiring import Holder

_TRIES = 3
_AGAIN_S = 0.05
"""A process that only reads holds the lock for a moment."""
_MOST_BYTES = 10_000
_MOST_NAME = 200
_END_OF_TIME = 1e11
"""The year 5138: beyond any clock, and beyond what calendars print."""


@dataclass(frozen=True, slots=True)
class Record:
    """Content of the file. Fields are None if the file is missing or invalid."""

    holder: Holder | None = None
    """Process that wired last and has not unwired."""
    first_at: float | None = None
    """Time when memory was first wired here."""


class WiredElsewhere(Exception):
    """Another process holds the lock; `holder` is None if the file does not name it."""

    def __init__(self, holder: Holder | None) -> None:
        super().__init__("another process has wired memory" if holder is None else f"{holder} has wired memory")
        self.holder = holder


def lock_file() -> Path:
    """Return its path, in the user's state directory."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "pippin" / "wired.lock"


class WiredLock:
    """Lock held from before weights are wired until they are unwired."""

    def __init__(self, handle: int, record: Record) -> None:
        self._handle, self._record = handle, record

    @classmethod
    def acquire(cls, model: str, *, path: Path | None = None, forgets_panics: bool = False) -> WiredLock:
        """Acquire the lock. Raises WiredElsewhere and OSError. `forgets_panics`: earlier panics no longer count."""
        path = path or lock_file()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if not _try_lock(handle, fcntl.LOCK_EX):
                raise WiredElsewhere(_read(handle).holder)
            before, now = _read(handle), time.time()
            first_at = now if before.first_at is None or forgets_panics else before.first_at
            record = Record(Holder(os.getpid(), model, now), first_at)
            _write(handle, record)
        except BaseException:
            os.close(handle)
            raise
        return cls(handle, record)

    def release(self) -> None:
        """Record that all is unwired, and release the lock. Call it once."""
        with contextlib.suppress(OSError):
            _write(self._handle, Record(None, self._record.first_at))
        with contextlib.suppress(OSError):
            fcntl.flock(self._handle, fcntl.LOCK_UN)  # a forked child may have the file open
        os.close(self._handle)


def look(path: Path | None = None) -> tuple[Record, bool]:
    """Return (the content of the file, whether the lock is held). Changes nothing, never raises."""
    try:
        handle = os.open(path or lock_file(), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return Record(), False
    try:
        return _read(handle), not _try_lock(handle, fcntl.LOCK_SH)
    except OSError:
        return Record(), False
    finally:
        os.close(handle)


def _try_lock(handle: int, kind: int) -> bool:
    for left in reversed(range(_TRIES)):
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if left:
                time.sleep(_AGAIN_S)
    return False


def _read(handle: int) -> Record:
    try:
        said: Any = json.loads(os.pread(handle, _MOST_BYTES, 0))
        first_at = None if said.get("first_at") is None else _moment(said["first_at"])
        if "pid" not in said:
            return Record(None, first_at)
        return Record(Holder(int(said["pid"]), str(said["model"])[:_MOST_NAME], _moment(said["since"])), first_at)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return Record()


def _moment(seconds: Any) -> float:
    moment = float(seconds)
    if not 0 <= moment < _END_OF_TIME:
        raise ValueError(seconds)
    return moment


def _write(handle: int, record: Record) -> None:
    said: dict[str, Any] = {"first_at": record.first_at}
    if record.holder is not None:
        said |= {"pid": record.holder.pid, "model": record.holder.model, "since": record.holder.since}
    text = json.dumps(said).encode()
    os.ftruncate(handle, 0)
    os.pwrite(handle, text, 0)
