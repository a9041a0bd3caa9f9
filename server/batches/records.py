"""What is kept of a file and of a batch beside its content: plain records, and their JSON."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
OPEN_STATUSES = frozenset({"validating", "in_progress", "finalizing", "cancelling"})
FILE_ID = re.compile(r"file-[0-9a-f]{32}")
BATCH_ID = re.compile(r"batch_[0-9a-f]{32}")


def new_file_id() -> str:
    return f"file-{secrets.token_hex(16)}"


def new_batch_id() -> str:
    return f"batch_{secrets.token_hex(16)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file of a client's. Its content is whole."""

    id: str
    owner: str
    """The name of the key that it belongs to; empty where there are no keys."""
    filename: str
    purpose: str
    num_bytes: int
    created_at: float
    expires_at: float

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> StoredFile:
        """Raises TypeError and ValueError for what is no record."""
        return _checked(cls(**fields), FILE_ID)


@dataclass(slots=True, kw_only=True)
class Batch:
    """A batch, from its creation to its end."""

    id: str
    owner: str
    endpoint: str
    input_id: str
    completion_window: str
    created_at: float
    expires_at: float
    """The end of its completion window."""
    metadata: dict[str, str] | None = None
    status: Status = "validating"
    ending: Status | None = None
    """The status that it ends with, once nothing more is answered: its files of answers are to be taken in."""
    output_id: str = field(default_factory=new_file_id)
    error_id: str = field(default_factory=new_file_id)
    """The files of answers, known from the start: ending a batch twice comes to the same."""
    has_output: bool = False
    has_errors: bool = False
    """Whether these files are there."""
    times: dict[str, float] = field(default_factory=dict)
    """When it came to each status but the first."""
    failures: list[dict[str, Any]] = field(default_factory=list)
    """Why it failed: code, message, line, param."""
    num_lines: int = 0
    num_done: int = 0
    num_failed: int = 0

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.status in OPEN_STATUSES

    def enter(self, status: Status, now: float) -> None:
        """Come to a status; the time of the first time counts."""
        self.status = status
        self.times.setdefault(status, now)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Batch:
        """Raises TypeError and ValueError for what is no record."""
        return _checked(cls(**fields), BATCH_ID)


Record = StoredFile | Batch


def to_json(record: Record) -> dict[str, Any]:
    return asdict(record)


R = TypeVar("R", StoredFile, Batch)


def _checked(record: R, id: re.Pattern[str]) -> R:
    if not isinstance(record.id, str) or not id.fullmatch(record.id):
        raise ValueError("no id of a record")
    return record
