"""Log handlers that write on a separate thread: no log can delay or fail the code that logs.

A line is formatted at once and written later, in order. Failed writes raise nothing: lines for a file go to standard
error instead, with a notice once a minute; lines that a full pipe or a hanging disk does not accept are dropped beyond
a bound, and counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import TextIO

_MOST_CHARS = 8 << 20
"""Most characters of waiting lines."""
_FLUSH_S = 2.0
_REMIND_S = 60.0


class BackgroundLog(logging.Handler):
    """Handler that calls `write` on a separate thread, with whole lines."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque()
        self._num_chars = 0
        self._num_dropped = 0
        self._is_writing = False
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> None:
        """Write lines, each with its newline. Raises nothing; may block."""
        raise NotImplementedError

    def emit(self, record: logging.LogRecord) -> None:
        line = self._format(record)
        with self._changed:
            if self._is_closed:
                return
            if self._num_chars + len(line) > _MOST_CHARS:
                self._num_dropped += 1
                return
            self._lines.append(line)
            self._num_chars += len(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until everything is written, at most _FLUSH_S."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines and not self._is_writing, _FLUSH_S)

    def close(self) -> None:
        self.flush()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        super().close()

    def notice(self, message: str) -> str:
        """Return a line from the log itself."""
        return self._format(logging.LogRecord("pippin.log", logging.WARNING, __file__, 0, message, (), None))

    def _format(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record) + "\n"
        except Exception as error:  # noqa: BLE001 - a mistake in a log call is not its request's
            return f"a line of {record.name} could not be formatted ({type(error).__name__})\n"

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._lines) or self._is_closed)
                if not self._lines:
                    return
                lines, self._lines, self._num_chars = self._lines, deque(), 0
                num_dropped, self._num_dropped = self._num_dropped, 0
                self._is_writing = True
            text = "".join(lines)
            self.write(text + self.notice(f"{num_dropped} lines could not be written in time") if num_dropped else text)


class ConsoleLog(BackgroundLog):
    """Log to standard error, as set at creation."""

    def __init__(self) -> None:
        super().__init__()
        self.stream: TextIO = sys.stderr

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the reader has gone
            self.stream.write(text)
            self.stream.flush()


class FileLog(BackgroundLog):
    """Log to a file, which may be moved while it is written, as by rotation: the next line begins a new one."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises OSError."""
        super().__init__()
        self._path = path
        self._fd: int | None = _open(path)
        self._told_at: float | None = None
        """Time of the last notice on standard error that the file cannot be written."""

    def write(self, text: str) -> None:
        try:
            self._append(text)
        except OSError as error:
            self._write_elsewhere(text, error)
        else:
            self._told_at = None

    def close(self) -> None:
        super().close()
        with self._changed:
            if not self._is_writing:  # otherwise the thread still uses it
                self._close_file()

    def _append(self, text: str) -> None:
        if self._fd is not None and not self._is_there(self._fd):
            self._close_file()
        if self._fd is None:
            self._fd = _open(self._path)
        left = memoryview(text.encode("utf-8", "backslashreplace"))
        while left:
            left = left[os.write(self._fd, left) :]

    def _is_there(self, fd: int) -> bool:
        """Return whether the path still names the open file."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _close_file(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _write_elsewhere(self, text: str, error: OSError) -> None:
        now = time.monotonic()
        if self._told_at is None or now - self._told_at > _REMIND_S:
            self._told_at = now
            why = error.strerror or type(error).__name__
            text = self.notice(f"the log file {self._path} cannot be written ({why}); its lines are here") + text
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text)
            sys.stderr.flush()


def _open(path: Path) -> int:
    """Open for appending. A FIFO without a reader is an error instead of a wait."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
    os.set_blocking(fd, True)
    return fd
