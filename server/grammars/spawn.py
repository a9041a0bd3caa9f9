"""Start and end of the host process of a model's grammars, by the server."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from server.grammars import wire
from server.grammars.limits import Limits
from server.grammars.wire import Kind, Vocabulary

logger = logging.getLogger("pippin.grammars")

_START_S = 60.0
_END_S = 5.0
_ORDER_S = 1.0
"""An order is a few bytes, and the host never waits for anything."""
_PROGRAM = "import sys; sys.path += sys.argv[1:3]; from server.grammars.host import main; main()"
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


class HostFailed(Exception):
    """There is no host and none could be started, or a grammar process could not do its work."""


class HostGone(HostFailed):
    """The host has died with the process it was to fork: a new host may succeed."""


class HostProcess:
    """Started with the first grammar, and restarted if it has died. `fork` belongs to the event loop."""

    def __init__(self, read_vocabulary: Callable[[], Vocabulary]) -> None:
        self._read_vocabulary = read_vocabulary
        self._control: socket.socket | None = None
        self._pid = 0
        self._lock = threading.Lock()
        self._is_closed = False

    def start(self) -> None:
        """Start it unless it is running, and wait until it is ready. Thread-safe. Raises HostFailed."""
        with self._lock:
            if self._control is None:
                self._start()

    async def fork(self, limits: Limits, sock: socket.socket) -> None:
        """Fork a process that reads from `sock`. Raises HostFailed."""
        for _ in range(2):
            if self._control is None:
                await asyncio.to_thread(self.start)
            control = self._control
            try:
                if control is not None:
                    socket.send_fds(control, [limits.pack()], [sock.fileno()])
                    return
            except OSError as error:
                logger.error("the host of the grammars has died (%s); it is started again", error)
                self._end()
        raise HostFailed("the host of the grammars does not stay alive")

    def close(self) -> None:
        """End it and all its processes. Thread-safe."""
        self._is_closed = True
        self._end()

    def _start(self) -> None:
        if self._is_closed:
            raise HostFailed("the model is being unloaded")
        ours, theirs = socket.socketpair()
        with theirs:
            self._pid = _spawn(theirs)
        try:
            ours.settimeout(_START_S)
            ours.sendall(wire.frame(Kind.VOCABULARY, wire.pack_vocabulary(self._read_vocabulary())))
            wire.receive(ours)
        except (wire.Closed, OSError) as error:
            ours.close()
            _reap(self._pid)
            raise HostFailed(f"the host of the grammars did not start ({type(error).__name__}: {error})") from error
        ours.settimeout(_ORDER_S)
        self._control = ours
        if self._is_closed:
            self._end()

    def _end(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            control.close()
            _reap(self._pid)


def _spawn(control: socket.socket) -> int:
    """Return the process id of a new host: one thread, no state of the server's, so that it may fork."""
    found = importlib.util.find_spec("llguidance")
    if found is None or found.origin is None:
        raise HostFailed("llguidance is not installed")
    paths = [str(Path(__file__).parents[2]), str(Path(found.origin).parents[1])]
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    nowhere = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_RDWR, 0)
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", "-c", _PROGRAM, *paths, "pippin-grammars"],
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, control.fileno(), 0), nowhere, (os.POSIX_SPAWN_DUP2, 1, 2)],
    )


def _reap(pid: int) -> None:
    """Wait for the end of a host after its control socket is closed; kill it if that takes long."""
    until = time.monotonic() + _END_S
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return
            time.sleep(0.005)
