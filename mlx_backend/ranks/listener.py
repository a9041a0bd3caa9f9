"""Listener: rank 0's socket, on which it waits for the others. Every connection is greeted on a separate thread.

Until a connection has proved the key, only the greeting's fixed number of bytes is read from it; then one hello.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import queue
import socket
import threading
import time
from types import TracebackType
from typing import Self

from mlx_backend.ranks import messages
from mlx_backend.ranks.addresses import listen
from mlx_backend.ranks.channel import GREETING_S, Channel, ChannelError, accept
from mlx_backend.ranks.seats import Refused, Seats, plain

_MOST_PENDING = 64
"""Connections that are greeted at once. Beyond it, the oldest is dropped: one with the key takes milliseconds."""
_LEAVE_S = 2.0
_REPEAT_S = 10.0
"""Least interval between logged failures of the same host."""
_MOST_HOSTS = 256
_POLL_S = 0.1

logger = logging.getLogger("pippin.ranks")


class Listener:
    """Returns authenticated processes that were assigned a rank, one after the other."""

    def __init__(self, host: str, port: int, key: bytes, seats: Seats) -> None:
        """Raises OSError if it cannot listen."""
        self._socket = listen(host, port)
        self._socket.settimeout(_POLL_S)
        self._key, self._seats, self._lock = key, seats, threading.Lock()
        self._pending: collections.deque[socket.socket] = collections.deque()
        self._found: queue.Queue[tuple[int, Channel]] = queue.Queue()
        self._logged: dict[str, float] = {}
        self.last_refusal: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._socket.close()

    @property
    def port(self) -> int:
        port: int = self._socket.getsockname()[1]
        return port

    def next(self) -> tuple[int, Channel] | None:
        """Return a process that has joined, or None if none joins within a moment."""
        with contextlib.suppress(TimeoutError, OSError):
            sock, address = self._socket.accept()
            threading.Thread(target=self._greet, args=(sock, plain(address[0])), name="greeting", daemon=True).start()
        with contextlib.suppress(queue.Empty):
            return self._found.get_nowait()
        return None

    def _greet(self, sock: socket.socket, ip: str) -> None:
        self._make_way(sock)
        try:
            channel = accept(sock, self._key)
            hello = messages.read(channel.receive(GREETING_S))
        except (ChannelError, ValueError) as error:
            self._note(ip, f"a connection from {ip} was given up: {error}")
            sock.close()
            return
        finally:
            with contextlib.suppress(ValueError), self._lock:
                self._pending.remove(sock)
        try:
            with self._lock:
                rank = self._seats.take(hello, ip)
        except Refused as error:
            self.last_refusal = f"{ip}: {error}"
            logger.warning("a process at %s was refused: %s", ip, error)
            _refuse(channel, str(error))
            return
        self._found.put((rank, channel))

    def _make_way(self, sock: socket.socket) -> None:
        with self._lock:
            self._pending.append(sock)
            oldest = self._pending.popleft() if len(self._pending) > _MOST_PENDING else None
        if oldest is not None:
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)

    def _note(self, ip: str, line: str) -> None:
        """Log a connection without the key, rate-limited, since any host may open any number of them."""
        now = time.monotonic()
        with self._lock:
            if now - self._logged.get(ip, -_REPEAT_S) < _REPEAT_S:
                return
            if len(self._logged) >= _MOST_HOSTS:
                self._logged.clear()
            self._logged[ip] = now
        self.last_refusal = line
        logger.warning("%s", line)


def _refuse(channel: Channel, why: str) -> None:
    """Send the reason, and wait until the other side has read it: closing a socket with unread bytes drops its own."""
    with contextlib.suppress(ChannelError):
        channel.send(messages.write({"call": "refused", "why": why}))
        deadline = time.monotonic() + _LEAVE_S
        while (left := deadline - time.monotonic()) > 0:
            channel.receive(left)
    channel.close()
