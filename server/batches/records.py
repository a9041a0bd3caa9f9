"""Records of files and batches, stored beside their content, and their JSON."""

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
    """A file of a client. Its content is complete."""

    id: str
    owner: str
    """Name of the key that owns it; empty without keys."""
    filename: str
    purpose: str
    num_bytes: int
    created_at: float
    expires_at: float

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> StoredFile:
        """Return the record of `fields`. Raises TypeError and ValueError if they are not a record."""
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
    """End of its completion window."""
    metadata: dict[str, str] | None = None
    status: Status = "validating"
    ending: Status | None = None
    """Final status, set once no more lines are answered; then its files of answers are taken into the store."""
    output_id: str = field(default_factory=new_file_id)
    error_id: str = field(default_factory=new_file_id)
    """Ids of the files of answers, fixed at the start so that ending a batch is idempotent."""
    has_output: bool = False
    has_errors: bool = False
    """Whether these files exist."""
    times: dict[str, float] = field(default_factory=dict)
    """Time of each status except the first."""
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
        """Enter a status; the time of the first entry is kept."""
        self.status = status
        self.times.setdefault(status, now)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Batch:
        """Return the record of `fields`. Raises TypeError and ValueError if they are not a record."""
        return _checked(cls(**fields), BATCH_ID)


Record = StoredFile | Batch


def to_json(record: Record) -> dict[str, Any]:
    return asdict(record)


R = TypeVar("R", StoredFile, Batch)


def _checked(record: R, id: re.Pattern[str]) -> R:
    if not isinstance(record.id, str) or not id.fullmatch(record.id):
        raise ValueError("no id of a record")
    return record
