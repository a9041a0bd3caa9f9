"""The file of answers, which is its own journal: each line names the line of the input that it answers.

A line is appended whole or not at all: the remains of a kill or a full disk are cut away. So a run can end at any
point, and the next one continues with the unanswered lines. The file is locked while it is open.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.batches.lines import MAX_NUMBER, BrokenLine, Line, RequestLine

_HEAD_BYTES = 8192
_PIECE_BYTES = 1 << 16
_BEGINNING = b'{"id": "batch_req_'
_HEAD = re.compile(
    rb'\{"id": "batch_req_([0-9a-f]{12})_(\d{1,9})", "custom_id": (?:null|"(?:[^"\\]|\\.)*"), '
    rb'"response": (?:null, |\{"status_code": (\d{3}), )'
)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class AnswersError(Exception):
    """The file of answers cannot be used; the message is one line."""


class DiskFull(AnswersError):
    """There is no room for an answer. Lines written before are whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path.name} cannot grow: the disk is full; what is written is whole")


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer of a server: a status, and a body that is JSON."""

    status: int
    body: bytes
    request_id: str = ""
    retry_after_s: float | None = None

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Written:
    """A line of the output, with its success and usage."""

    text: bytes
    is_success: bool = False
    usage: Any = None


def write_answer(line: RequestLine, answer: Answer) -> Written:
    """Return the line of the output for an answer."""
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        message = f"The server's answer with status {answer.status} is not JSON."
        return write_error(line, "invalid_answer", message)
    response = {"status_code": answer.status, "request_id": answer.request_id, "body": body}
    usage = body.get("usage") if isinstance(body, dict) else None
    return Written(_write(line, response, None), answer.is_success, usage)


def write_error(line: Line, code: str, message: str, param: str | None = None) -> Written:
    """Return the line of the output for a line without an answer from a server."""
    error = {"code": code, "message": message, "line": line.number, **({"param": param} if param else {})}
    return Written(_write(line, None, error))


def write_broken(line: BrokenLine) -> Written:
    """Return the line of the output for a line that is not a request."""
    return write_error(line, line.code, line.message, line.param)


def _write(line: Line, response: dict[str, Any] | None, error: dict[str, Any] | None) -> bytes:
    id = f"batch_req_{line.mark}_{line.number}"
    record = {"id": id, "custom_id": line.custom_id, "response": response, "error": error}
    return json.dumps(record).encode() + b"\n"


class Answered:
    """Set of the input's answered lines, by number, eight bytes each."""

    def __init__(self) -> None:
        self._marks = array("Q")
        self.num_lines = 0

    def add(self, number: int, mark: str) -> None:
        """Record an answer. Raises AnswersError if the line already has one."""
        if number >= len(self._marks):
            self._marks.extend([0] * (number + 1 - len(self._marks)))
        if self._marks[number]:
            raise AnswersError(f"line {number} of the input is answered twice; choose another file for the output")
        self._marks[number] = int(mark, 16) + 1
        self.num_lines += 1

    def has(self, number: int, mark: str) -> bool:
        """Return whether a line is answered. Raises AnswersError if the answer is that of another line."""
        found = self._marks[number] if number < len(self._marks) else 0
        if found and found != int(mark, 16) + 1:
            raise AnswersError(
                f"line {number} of the input is not the one that the output answers: the input has changed; "
                "choose another file for the output"
            )
        return found > 0


@dataclass(frozen=True, slots=True)
class Found:
    """A line found in an existing output."""

    number: int
    mark: str
    is_success: bool


class AnswerFile:
    """Answers on disk, appended line by line. For one thread at a time."""

    def __init__(self, path: Path, *, check_room: Callable[[int], None] = lambda _: None) -> None:
        """Open or create the file, and lock it. Raises AnswersError and OSError.

        `check_room`: called with the number of bytes before they are written; raises to refuse them.
        """
        self.path = path
        self._check_room = check_room
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise AnswersError(f"{path.name} is being written by another process") from None
        self.num_bytes = os.fstat(self._file).st_size
        self._is_synced = True

    def recover(self) -> Iterator[Found]:
        """Yield the existing answers, and cut away an incomplete last line. Raises AnswersError and OSError."""
        with os.fdopen(os.dup(self._file), "rb") as stream:
            stream.seek(0)
            place, number = 0, 0
            while head := stream.readline(_HEAD_BYTES):
                number += 1
                size, last = len(head), head
                while not last.endswith(b"\n") and (piece := stream.readline(_PIECE_BYTES)):
                    size, last = size + len(piece), last[-1:] + piece
                found = _HEAD.match(head)
                if found is None or not last.endswith(b"}\n"):
                    self._cut(place, number, head, is_torn=not last.endswith(b"\n"))
                    return
                if int(found[2]) > MAX_NUMBER:
                    raise AnswersError(f"line {number} of {self.path.name} answers no line of a batch")
                yield Found(int(found[2]), found[1].decode(), (found[3] or b"").startswith(b"2"))
                place += size

    def append(self, line: bytes) -> None:
        """Write one line. Raises DiskFull, what `check_room` raises, and OSError; the file stays whole."""
        self._check_room(len(line))
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            os.ftruncate(self._file, self.num_bytes)
            if error.errno in _FULL:
                raise DiskFull(self.path) from None
            raise
        self.num_bytes += len(line)
        self._is_synced = False

    def sync(self) -> None:
        """Sync the file to disk, so that it survives a power cut. Raises OSError."""
        if not self._is_synced:
            self._is_synced = True
            os.fsync(self._file)

    def close(self) -> None:
        """Close the file, which unlocks it."""
        os.close(self._file)

    def _cut(self, place: int, number: int, head: bytes, *, is_torn: bool) -> None:
        """Cut away the rest, which a kill or a power cut left. Raises AnswersError if it is no file of answers."""
        is_ours = head[: len(_BEGINNING)] == _BEGINNING[: len(head)] or (number > 1 and head.startswith(b"\0"))
        if not is_ours or not (is_torn or b"\0" in head):
            raise AnswersError(f"line {number} of {self.path.name} is not an answer of a batch; name another file")
        os.ftruncate(self._file, place)
        self.num_bytes = place
