"""Golden files: a kind of request with what the engine makes of it, and the comparison with the file of its answer."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fake_engine import Script


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request, and what the engine makes of it."""

    path: str
    script: Script
    body: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    """Of the whole answer; a stream has begun by then."""


def compare(path: Path, written: bytes) -> None:
    """Compare with the file, or with `GOLDEN=write` in the environment write it."""
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(written)
    assert written.decode() == path.read_bytes().decode()
