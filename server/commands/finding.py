"""A finding of `pippin doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: the subject, its state and a text; with advice if the state is not ok."""

    what: str
    state: State
    text: str
    advice: str = ""
