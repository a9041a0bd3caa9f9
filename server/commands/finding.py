"""A finding of `pippin doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and where it is not well, what to do."""

    what: str
    state: State
    text: str
    advice: str = ""
