"""The channel between ranks: whole frames in order, and nothing that the peer did not send."""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_backend.ranks import channel
from mlx_backend.ranks.channel import (
    KEY_BYTES,
    MAGIC,
    MAX_FRAME_BYTES,
    Channel,
    ChannelClosed,
    ChannelError,
    NotAuthenticated,
    accept,
    connect,
)

T = TypeVar("T")
KEY = bytes(range(KEY_BYTES))
TAG_BYTES = 32
GREETING_BYTES = len(MAGIC) + 32 + TAG_BYTES


_OPEN: deque[socket.socket] = deque()
"""Sockets of tests, oldest first: no test uses more than a few."""


def connected() -> tuple[socket.socket, socket.socket]:
    """Two sockets that are connected. Those of tests that have ended are closed."""
    while len(_OPEN) > 40:
        _OPEN.popleft().close()
    pair = socket.socketpair()
    _OPEN.extend(pair)
    return pair


@pytest.fixture(scope="module", autouse=True)
def closing() -> Iterator[None]:
    yield
    while _OPEN:
        _OPEN.popleft().close()


def in_thread(call: Callable[[], T]) -> Callable[[], T]:
    """Start a call on a thread; return what waits for its result or raises its error."""
    found: list[T | ChannelError] = []

    def run() -> None:
        try:
            found.append(call())
        except ChannelError as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result() -> T:
        thread.join(30)
        assert found, "the call did not return"
        if isinstance(found[0], ChannelError):
            raise found[0]
        return found[0]

    return result


def pair(accepting_key: bytes = KEY, connecting_key: bytes = KEY) -> tuple[Channel, Channel]:
    """Both ends of a connection that has been greeted: (accepting, connecting)."""
    ours, theirs = connected()
    other = in_thread(lambda: accept(ours, accepting_key))
    connecting = connect(theirs, connecting_key)
    return other(), connecting


class Tap:
    """A connection whose bytes pass through a test, which may change them: (accepting) <-> tap <-> (connecting)."""

    def __init__(self) -> None:
        ours, self.to_accepting = connected()
        theirs, self.to_connecting = connected()
        accepting, connecting = in_thread(lambda: accept(ours, KEY)), in_thread(lambda: connect(theirs, KEY))
        self.to_connecting.sendall(read(self.to_accepting, len(MAGIC) + 32))
        self.to_accepting.sendall(read(self.to_connecting, GREETING_BYTES))
        self.to_connecting.sendall(read(self.to_accepting, TAG_BYTES))
        self.accepting, self.connecting = accepting(), connecting()

    def frame(self, payload: bytes) -> bytes:
        """What the accepting side sends for a payload."""
        self.accepting.send(payload)
        return read(self.to_accepting, 4 + len(payload) + TAG_BYTES)


def read(sock: socket.socket, num_bytes: int) -> bytes:
    sock.settimeout(30)
    data = b""
    while len(data) < num_bytes:
        part = sock.recv(num_bytes - len(data))
        assert part, "the connection ended early"
        data += part
    return data


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=5000)), max_size=20))
def test_what_is_sent_arrives_in_order_in_both_directions(messages: list[tuple[bool, bytes]]) -> None:
    ends = pair()
    for goes_back, payload in messages:
        sender, receiver = ends if goes_back else ends[::-1]
        sender.send(payload)
        assert receiver.receive() == payload
    for end in ends:
        end.close()


def test_a_message_larger_than_the_buffers_of_the_connection_arrives() -> None:
    accepting, connecting = pair()
    payload = bytes(8 << 20)
    received = in_thread(connecting.receive)
    accepting.send(payload)
    assert received() == payload


@settings(max_examples=40, deadline=None)
@given(st.data(), st.binary(min_size=1, max_size=40))
def test_no_changed_bit_of_a_frame_goes_unnoticed(data: st.DataObject, payload: bytes) -> None:
    tap = Tap()
    frame = bytearray(tap.frame(payload))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    tap.to_connecting.sendall(frame)
    tap.to_connecting.shutdown(socket.SHUT_WR)
    with pytest.raises(ChannelError):
        tap.connecting.receive()


def test_a_repeated_frame_is_refused() -> None:
    tap = Tap()
    frame = tap.frame(b"once")
    tap.to_connecting.sendall(frame + frame)
    assert tap.connecting.receive() == b"once"
    with pytest.raises(NotAuthenticated):
        tap.connecting.receive()


def test_frames_in_another_order_are_refused() -> None:
    tap = Tap()
    first, second = tap.frame(b"first"), tap.frame(b"second")
    tap.to_connecting.sendall(second + first)
    with pytest.raises(NotAuthenticated):
        tap.connecting.receive()


def test_a_frame_of_another_connection_is_refused() -> None:
    before, now = Tap(), Tap()
    now.to_connecting.sendall(before.frame(b"start"))
    with pytest.raises(NotAuthenticated):
        now.connecting.receive()


def test_a_frame_that_is_sent_back_is_refused() -> None:
    tap = Tap()
    tap.to_accepting.sendall(tap.frame(b"mine"))
    with pytest.raises(NotAuthenticated):
        tap.accepting.receive()


@pytest.mark.parametrize("length", [MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_a_length_beyond_the_limit_is_refused_before_anything_is_read(length: int) -> None:
    tap = Tap()
    tap.to_connecting.sendall(struct.pack("!I", length))
    tap.to_connecting.shutdown(socket.SHUT_WR)
    with pytest.raises(NotAuthenticated, match="announced"):
        tap.connecting.receive()


def test_a_message_beyond_the_limit_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    accepting, connecting = pair()
    monkeypatch.setattr(channel, "MAX_FRAME_BYTES", 10)
    with pytest.raises(ChannelError, match="11 bytes"):
        accepting.send(bytes(11))
    accepting.send(bytes(10))
    assert connecting.receive() == bytes(10)


@pytest.mark.parametrize("kept", [0, 2, 4, 7, 20])
def test_a_connection_that_is_cut_within_a_frame_ends_it(kept: int) -> None:
    tap = Tap()
    tap.to_connecting.sendall(tap.frame(b"payload")[:kept])
    tap.to_connecting.close()
    with pytest.raises(ChannelClosed):
        tap.connecting.receive()


def test_closing_one_end_ends_what_waits_at_both() -> None:
    accepting, connecting = pair()
    waiting = in_thread(accepting.receive), in_thread(connecting.receive)
    accepting.close()
    for each in waiting:
        with pytest.raises(ChannelClosed):
            each()
    with pytest.raises(ChannelClosed):
        for _ in range(100):
            connecting.send(b"late")


def test_another_key_is_refused_by_the_accepting_side() -> None:
    ours, theirs = connected()
    other = in_thread(lambda: accept(ours, KEY))
    with pytest.raises(NotAuthenticated, match="not accepted"):
        connect(theirs, bytes(KEY_BYTES))
    with pytest.raises(NotAuthenticated, match="another key"):
        other()


def test_an_accepting_side_without_the_key_is_refused_by_the_connecting_side() -> None:
    impostor, theirs = connected()
    other = in_thread(lambda: connect(theirs, KEY))
    impostor.sendall(MAGIC + bytes(32))
    read(impostor, GREETING_BYTES)
    impostor.sendall(bytes(TAG_BYTES))
    with pytest.raises(NotAuthenticated, match="key"):
        other()


def test_a_greeting_is_of_no_use_to_a_second_connection() -> None:
    ours, theirs = connected()
    other = in_thread(lambda: accept(ours, KEY))
    nonce = read(theirs, len(MAGIC) + 32)
    client, peer = connected()
    connecting = in_thread(lambda: connect(client, KEY))
    peer.sendall(nonce)
    greeting = read(peer, GREETING_BYTES)
    theirs.sendall(greeting)
    assert isinstance(other(), Channel)
    again, replaying = connected()
    other = in_thread(lambda: accept(again, KEY))
    replaying.sendall(greeting)
    with pytest.raises(NotAuthenticated):
        other()
    peer.close()
    with pytest.raises(NotAuthenticated, match="not accepted"):
        connecting()


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=1, max_size=300))
def test_garbage_in_place_of_a_greeting_is_refused(garbage: bytes) -> None:
    for greet in (accept, connect):
        ours, theirs = connected()
        theirs.sendall(garbage)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ChannelError):
            greet(ours, KEY)
        assert ours.fileno() == -1
        theirs.close()


def test_a_greeting_that_does_not_come_is_given_up() -> None:
    ours, theirs = connected()
    with pytest.raises(ChannelClosed, match="in time"):
        accept(ours, KEY, within_s=0.02)
    assert ours.fileno() == -1
    theirs.close()


def test_no_more_than_a_greeting_is_read_of_a_peer_without_the_key() -> None:
    ours, theirs = connected()
    kept = ours.dup()
    _OPEN.append(kept)
    theirs.sendall(MAGIC + bytes(32) + bytes(TAG_BYTES) + b"unread")
    with pytest.raises(NotAuthenticated):
        accept(ours, KEY)
    assert kept.recv(100) == b"unread"
