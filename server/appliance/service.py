"""Description of a service, whatever starts it: the command, where it runs, what it may write; and the service files.

`launchd` and `systemd` write them; nothing here is specific to either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NUM_OPEN_FILES = 10_240
"""Each connection uses one; macOS allows no more."""
RESTART_S = 10
"""Delay between a failure and the next start, so that a model is not loaded over and over."""
_MARGIN_S = 10
_CARRIED = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME", "XDG_STATE_HOME")
"""XDG_STATE_HOME holds the lock of wired memory, which must be the same file for all of a user's servers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One server that the system starts. All paths are absolute."""

    arguments: tuple[str, ...]
    """The command and its arguments."""
    folder: Path
    """Working directory: paths of the configuration may be relative to it."""
    home: Path
    user: str
    uid: int
    is_system: bool
    """True: belongs to the machine, starts with it and runs as `user`. False: belongs to the user, starts with the
    session.
    """
    environment: Mapping[str, str]
    drain_s: float
    written: tuple[Path, ...] = ()
    """Folders that it writes to."""
    is_rank: bool = False
    """It holds a part of a model that another machine serves, and rejoins however it ends."""

    def __post_init__(self) -> None:
        told = (*self.arguments, str(self.folder), *map(str, self.written), *self.environment.values())
        if any(not character.isprintable() for text in told for character in text):
            raise ValueError("a path, argument or variable with a control character cannot be written into a service")

    @property
    def stop_within_s(self) -> int:
        """Time the system must grant before killing it: longer than the server's own limit.

        A killed process does not unwire its memory, which macOS may then hold until the machine restarts.
        """
        from server.lifecycle import CLOSE_S  # late: `pippin --help` needs no HTTP

        return math.ceil(self.drain_s + CLOSE_S + _MARGIN_S)


@dataclass(frozen=True, slots=True)
class ServiceFile:
    """A file to write, the folders it needs, and the commands for the user to run afterwards."""

    path: Path
    text: str
    folders: tuple[Path, ...]
    start: tuple[tuple[str, ...], ...]
    stop: tuple[tuple[str, ...], ...]
    hints: tuple[str, ...] = ()


def carried(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of this shell that the server needs. None of them is secret."""
    return {name: value for name, value in sorted(environ.items()) if name.startswith("PIPPIN_") or name in _CARRIED}
