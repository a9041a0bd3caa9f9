"""Declaration of a configuration field: its default, its help, its bounds, in one place.

Independent of files, environments and flags: `server.config` reads the metadata written here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any


class OptionError(ValueError):
    """A value that a section cannot have: `field` names its field, `problem` says the rest."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem


def option(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    choices: Sequence[Any] | None = None,
    short_flag: str | None = None,
) -> Any:
    """Return a dataclass field with its help text and bounds; `check_options` enforces the bounds.

    `short_flag`: another name of its flag on the command line.
    """
    metadata = {"help": help, "ge": ge, "gt": gt, "choices": tuple(choices) if choices else None}
    metadata["short_flag"] = short_flag
    return dataclasses.field(default=default, metadata=metadata)


def check_options(section: Any) -> None:
    """Raise OptionError, naming the field, if a value of `section` is out of its declared bounds."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if value is None:
            continue
        bounds = field.metadata
        if bounds.get("choices") and value not in bounds["choices"]:
            allowed = ", ".join(map(str, bounds["choices"]))
            raise OptionError(field.name, f"must be one of {allowed}, not {value!r}")
        if bounds.get("ge") is not None and value < bounds["ge"]:
            raise OptionError(field.name, f"must be at least {bounds['ge']}, not {value!r}")
        if bounds.get("gt") is not None and value <= bounds["gt"]:
            raise OptionError(field.name, f"must be more than {bounds['gt']}, not {value!r}")
