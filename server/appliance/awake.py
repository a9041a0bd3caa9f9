"""Prevention of sleep while requests run: macOS's `caffeinate`, started and ended as a child.

The child also ends by itself when this process does, however that ends (`-w`). Written from caffeinate's manual; not
run on a Mac.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

logger = logging.getLogger("pippin.awake")

CAFFEINATE = Path("/usr/bin/caffeinate")
GRACE_S = 10.0
"""Delay between the last request and its end, so that a conversation does not restart it on each turn."""


class Child(Protocol):
    """The part of `subprocess.Popen` in use."""

    def poll(self) -> int | None: ...

    def terminate(self) -> None: ...

    def wait(self) -> int: ...


def start_caffeinate(command: Path = CAFFEINATE) -> Child:
    """Start it. `-i`: no idle sleep; `-w`: until this process ends. Raises OSError."""
    # close_fds=False makes Python use posix_spawn: forking a process that holds hundreds of gigabytes would take long.
    # No file of this process is inherited regardless.
    arguments = [str(command), "-i", "-w", str(os.getpid())]
    return subprocess.Popen(arguments, close_fds=False)


def find_awake(policy: str, *, platform: str = sys.platform, command: Path = CAFFEINATE) -> Awake | None:
    """Return the keeper; None if the machine need not, or cannot, be kept awake."""
    if policy == "never" or platform != "darwin":
        return None
    if not command.is_file():
        logger.warning("there is no %s: the machine may fall asleep while requests run", command)
        return None
    return Awake(lambda: start_caffeinate(command))


class Awake:
    """Holds a child while there is work, and for `grace_s` after it. Called on the event loop."""

    def __init__(self, start: Callable[[], Child], grace_s: float = GRACE_S) -> None:
        self._start = start
        self._grace_s = grace_s
        self._child: Child | None = None
        self._ending: asyncio.TimerHandle | None = None

    def watch(self, is_busy: bool) -> None:
        """Hold a child when work begins; schedule its end when none is left."""
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        if not is_busy:
            self._ending = asyncio.get_running_loop().call_later(self._grace_s, self.close)
        elif self._child is None or self._child.poll() is not None:
            self._hold()

    def close(self) -> None:
        """Allow the machine to sleep. Idempotent."""
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        child, self._child = self._child, None
        if child is not None and child.poll() is None:
            child.terminate()
            threading.Thread(target=child.wait, name="awake", daemon=True).start()

    def _hold(self) -> None:
        try:
            self._child = self._start()
        except OSError as error:
            logger.warning("the machine may fall asleep while requests run: %s", error)
