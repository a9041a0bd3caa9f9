"""Host of one model's grammar processes: holds the vocabulary, forks a process for each grammar, kills and reaps.

Started as `python -m server.grammars.host`, with the server's control socket as standard input. A fork shares the
vocabulary's memory and takes a millisecond; rebuilding the vocabulary would take up to a second. One thread; its only
state is the running processes.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
from typing import Any

from server.grammars import wire
from server.grammars.limits import LIMITS_BYTES, Limits
from server.grammars.matching import build_tokenizer, run
from server.grammars.wire import Death, Kind


def main() -> None:
    """Serve until the server closes the control socket."""
    control = socket.socket(fileno=0)
    os.setsid()  # a terminal's Ctrl-C is for the server, which still needs the host while it drains
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _, body = wire.receive(control)
    tokenizer = build_tokenizer(wire.unpack_vocabulary(body))
    control.sendall(wire.frame(Kind.READY))
    gc.collect()
    gc.freeze()
    Host(control, tokenizer).serve()


class Host:
    """Running grammar processes, by the descriptor of the host's end of their socket."""

    def __init__(self, control: socket.socket, tokenizer: Any) -> None:
        self._control = control
        self._tokenizer = tokenizer
        self._running: dict[int, tuple[int, socket.socket]] = {}
        self._poll = select.poll()
        self._woken, self._wakes = os.pipe()
        for fd in (self._woken, self._wakes):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._poll.register(control, select.POLLIN)
        self._poll.register(self._woken, select.POLLIN)

    def serve(self) -> None:
        """Fork on request, kill a process when its socket closes, report those that ended."""
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._control.fileno():
                    try:
                        self._fork(*_receive_order(self._control))
                    except wire.Closed:
                        self._kill_all()
                        return
                elif fd == self._woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._woken, 4096)
                elif fd in self._running:
                    self._poll.unregister(fd)
                    os.kill(self._running[fd][0], signal.SIGKILL)
            self._reap()

    def _fork(self, limits: Limits, sock: socket.socket) -> None:
        try:
            pid = os.fork()
        except OSError:
            _report(sock, Death(None))
            return
        if pid == 0:
            self._leave()
            run(sock, limits, self._tokenizer)
        self._running[sock.fileno()] = (pid, sock)
        self._poll.register(sock, 0)  # hang-ups only: data is for the process

    def _leave(self) -> None:
        """Close the host's descriptors in a grammar process. A socket held open by another process would never end."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._woken)
        os.close(self._wakes)
        os.dup2(1, self._control.fileno())
        for _, sock in self._running.values():
            sock.close()

    def _reap(self) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            fd = next(fd for fd, (running, _) in self._running.items() if running == pid)
            _, sock = self._running.pop(fd)
            with contextlib.suppress(KeyError):
                self._poll.unregister(fd)
            _report(sock, Death(status))

    def _kill_all(self) -> None:
        for pid, _ in self._running.values():
            os.kill(pid, signal.SIGKILL)


def _receive_order(control: socket.socket) -> tuple[Limits, socket.socket]:
    """Return the limits of a new process, and its socket. Raises wire.Closed."""
    body, fds = b"", list[int]()
    while len(body) < LIMITS_BYTES:
        piece, received, _, _ = socket.recv_fds(control, LIMITS_BYTES - len(body), 1)
        body, fds = body + piece, fds + received
        if not piece:
            raise wire.Closed
    return Limits.unpack(body), socket.socket(fileno=fds[0])


def _report(sock: socket.socket, death: Death) -> None:
    """Report a death to the server, if it still listens."""
    with contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.send(wire.frame(Kind.DIED, wire.pack_died(death)))
    sock.close()


if __name__ == "__main__":
    main()
