"""What a service is, whatever starts it: the command, where it runs, what it may write. And the files that say so.

`launchd` and `systemd` write them; nothing here is either's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NUM_OPEN_FILES = 10_240
"""A connection is one; macOS takes no more."""
RESTART_S = 10
"""Between an end with an error and the next start: a model is not loaded over and over."""
_MARGIN_S = 10
_CARRIED = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME", "XDG_STATE_HOME")
"""XDG_STATE_HOME: the lock of wired memory is there, and must be the same file for every server of a user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One server that the system starts. All paths are absolute."""

    arguments: tuple[str, ...]
    """The command and what follows it."""
    folder: Path
    """Where it is started: paths of the configuration may be relative to it."""
    home: Path
    user: str
    uid: int
    is_system: bool
    """Of the machine and started with it, as `user`; else of the user, and started with the session."""
    environment: Mapping[str, str]
    drain_s: float
    written: tuple[Path, ...] = ()
    """Folders that it writes to."""
    is_rank: bool = False
    """It holds a part of a model that another machine serves. Whatever ends it, it joins again."""

    def __post_init__(self) -> None:
        told = (*self.arguments, str(self.folder), *map(str, self.written), *self.environment.values())
        if any(not character.isprintable() for text in told for character in text):
            raise ValueError("a path, argument or variable with a control character cannot be written into a service")

    @property
    def stop_within_s(self) -> int:
        """What the system must grant it before it kills: longer than the server grants itself.

        A process that is killed does not unwire its memory, which macOS may then hold until the machine restarts.
        """
        from server.lifecycle import CLOSE_S  # late: `pippin --help` needs no HTTP

        return math.ceil(self.drain_s + CLOSE_S + _MARGIN_S)


@dataclass(frozen=True, slots=True)
class ServiceFile:
    """A file to be written, the folders it needs, and the commands that a person says then."""

    path: Path
    text: str
    folders: tuple[Path, ...]
    start: tuple[tuple[str, ...], ...]
    stop: tuple[tuple[str, ...], ...]
    hints: tuple[str, ...] = ()


def carried(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of this shell that the server would miss. Nothing secret is among them."""
    return {name: value for name, value in sorted(environ.items()) if name.startswith("PIPPIN_") or name in _CARRIED}
