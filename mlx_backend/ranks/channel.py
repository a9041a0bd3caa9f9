"""Authenticated frames between two ranks over one TCP connection. No MLX; independent of the content.

Greeting: the accepting side sends MAGIC and a nonce; the connecting side answers with MAGIC, its own nonce and a tag
over both; the accepting side then proves the key with a tag in turn. Nothing else is read from a peer before its tag
has been compared; the greeting has a fixed number of bytes, due within a deadline.

Frame: the length of the payload (4 bytes), the payload, and the HMAC-SHA256 of the frame's number, the length and the
payload. Each direction of each connection has a separate key, derived from the shared key and both nonces, so a frame
that is changed, repeated, left out, sent back, or taken from another connection is refused. Frames are not encrypted.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable

MAGIC = b"pippin-ranks/2\n\0"
KEY_BYTES = 32
MAX_FRAME_BYTES = 64 << 20
"""More than the largest message: a prompt of a million tokens takes 8 MB."""
GREETING_S = 5.0
"""Timeout of a greeting: a connection occupies the accepting side for this long at most."""
_NONCE_BYTES = 32
_TAG_BYTES = 32
_HEAD = struct.Struct("!I")
_NUMBER = struct.Struct("!Q")
_READ_BYTES = 1 << 20
"""Memory is allocated as bytes arrive, not by the announced length."""


class ChannelError(Exception):
    """The connection is unusable; the message gives the reason."""


class ChannelClosed(ChannelError):
    """The peer has closed the connection, or it was cut."""


class NotAuthenticated(ChannelError):
    """The peer does not have the key, or speaks another protocol."""


class Channel:
    """One end of an authenticated connection. Any thread may send; one thread receives."""

    def __init__(self, sock: socket.socket, send_key: bytes, receive_key: bytes) -> None:
        self._socket, self._send_key, self._receive_key = sock, send_key, receive_key
        self._num_sent = self._num_received = 0
        self._lock = threading.Lock()
        self.heard_at = time.monotonic()
        """Time when the last whole frame arrived."""

    def send(self, payload: bytes) -> None:
        """Send one frame. Raises ChannelError."""
        if len(payload) > MAX_FRAME_BYTES:
            raise ChannelError(f"a message of {len(payload)} bytes is more than the {MAX_FRAME_BYTES} of a frame")
        head = _HEAD.pack(len(payload))
        with self._lock:
            tag = _tag(self._send_key, _NUMBER.pack(self._num_sent), head, payload)
            self._num_sent += 1
            try:
                self._socket.sendall(b"".join((head, payload, tag)))
            except OSError as error:
                raise ChannelClosed(f"the connection is lost: {error}") from error

    def receive(self, within_s: float | None = None) -> bytes:
        """Wait for one frame. Raises ChannelError, after which nothing more can be received."""
        deadline = None if within_s is None else time.monotonic() + within_s
        payload = self._receive(deadline)
        if deadline is not None:
            self._socket.settimeout(None)
        return payload

    def _receive(self, deadline: float | None) -> bytes:
        head = _read(self._socket, _HEAD.size, deadline)
        (length,) = _HEAD.unpack(head)
        if length > MAX_FRAME_BYTES:
            raise NotAuthenticated(f"a frame of {length} bytes is announced, more than the {MAX_FRAME_BYTES} allowed")
        payload, tag = _read(self._socket, length, deadline), _read(self._socket, _TAG_BYTES, deadline)
        if not hmac.compare_digest(tag, _tag(self._receive_key, _NUMBER.pack(self._num_received), head, payload)):
            raise NotAuthenticated("a frame does not carry the tag that is due")
        self._num_received += 1
        self.heard_at = time.monotonic()
        return payload

    def close(self) -> None:
        """End the connection; a receiving thread gets ChannelClosed."""
        with contextlib.suppress(OSError):  # the peer was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def accept(sock: socket.socket, key: bytes, within_s: float = GREETING_S) -> Channel:
    """Greet a connection that was accepted. Raises ChannelError after closing the socket."""
    return _greet(sock, within_s, lambda deadline: _greet_as_accepting(sock, key, deadline))


def connect(sock: socket.socket, key: bytes, within_s: float = GREETING_S) -> Channel:
    """Greet the accepting side. Raises ChannelError after closing the socket."""
    return _greet(sock, within_s, lambda deadline: _greet_as_connecting(sock, key, deadline))


def _greet(sock: socket.socket, within_s: float, greet: Callable[[float], tuple[bytes, bytes]]) -> Channel:
    try:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keys = greet(time.monotonic() + within_s)
        sock.settimeout(None)
    except OSError as error:
        sock.close()
        raise ChannelClosed(f"the connection is lost: {error}") from error
    except ChannelError:
        sock.close()
        raise
    return Channel(sock, *keys)


def _greet_as_accepting(sock: socket.socket, key: bytes, deadline: float) -> tuple[bytes, bytes]:
    own = secrets.token_bytes(_NONCE_BYTES)
    _send_by(sock, MAGIC + own, deadline)
    theirs = _read_nonce(sock, deadline)
    _check_tag(sock, key, b"connects", own + theirs, deadline)
    _send_by(sock, _tag(key, b"accepts", own + theirs), deadline)
    return _tag(key, b"from accepting", own + theirs), _tag(key, b"from connecting", own + theirs)


def _greet_as_connecting(sock: socket.socket, key: bytes, deadline: float) -> tuple[bytes, bytes]:
    theirs = _read_nonce(sock, deadline)
    own = secrets.token_bytes(_NONCE_BYTES)
    _send_by(sock, MAGIC + own + _tag(key, b"connects", theirs + own), deadline)
    try:
        _check_tag(sock, key, b"accepts", theirs + own, deadline)
    except ChannelClosed as error:
        raise NotAuthenticated(f"the key was not accepted ({error}); copy rank 0's key file to this machine") from error
    return _tag(key, b"from connecting", theirs + own), _tag(key, b"from accepting", theirs + own)


def _read_nonce(sock: socket.socket, deadline: float) -> bytes:
    if _read(sock, len(MAGIC), deadline) != MAGIC:
        raise NotAuthenticated("the other side does not speak this protocol, or another version of it")
    return _read(sock, _NONCE_BYTES, deadline)


def _check_tag(sock: socket.socket, key: bytes, role: bytes, nonces: bytes, deadline: float) -> None:
    if not hmac.compare_digest(_read(sock, _TAG_BYTES, deadline), _tag(key, role, nonces)):
        raise NotAuthenticated("it has another key; copy rank 0's key file to every machine")


def _send_by(sock: socket.socket, data: bytes, deadline: float) -> None:
    sock.settimeout(max(0.001, deadline - time.monotonic()))
    sock.sendall(data)


def _read(sock: socket.socket, num_bytes: int, deadline: float | None = None) -> bytes:
    """Return exactly this many bytes. Raises ChannelClosed if they do not arrive."""
    parts: list[bytes] = []
    missing = num_bytes
    while missing:
        if deadline is not None:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            part = sock.recv(min(missing, _READ_BYTES))
        except TimeoutError:
            raise ChannelClosed("what was due did not come in time") from None
        except OSError as error:
            raise ChannelClosed(f"the connection is lost: {error}") from error
        if not part:
            raise ChannelClosed("the other side has closed the connection")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _tag(key: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b"".join(parts), "sha256")
