"""Where rank 0 waits: whatever connects, processes with the key join, and the others learn why they may not."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from mlx_backend.ranks import listener as listener_module
from mlx_backend.ranks import messages
from mlx_backend.ranks.addresses import LOOPBACK
from mlx_backend.ranks.channel import Channel, ChannelError, NotAuthenticated, accept, connect
from mlx_backend.ranks.listener import Listener
from mlx_backend.ranks.seats import Seat, Seats

WAIT_S = 60.0
KEY = bytes(range(32))
VERSIONS = {"pippin": "1"}
HELLO = {"say": "hello", "versions": VERSIONS}


@pytest.fixture
def waiting() -> Iterator[Listener]:
    seats = Seats([Seat(1, "studio-2", frozenset({LOOPBACK})), Seat(2, "studio-3", frozenset({"10.0.0.3"}))], VERSIONS)
    with Listener(LOOPBACK, 0, KEY, seats) as found:
        yield found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def dial(waiting: Listener, stack: ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_connection((LOOPBACK, waiting.port)))


def next_of(waiting: Listener) -> tuple[int, Channel]:
    end = time.monotonic() + WAIT_S
    while (found := waiting.next()) is None:
        assert time.monotonic() < end, "nothing has joined"
    return found


def ask(waiting: Listener, stack: ExitStack, key: bytes = KEY, **hello: Any) -> dict[str, Any] | ChannelError:
    """What a process hears that joins while rank 0 waits."""
    sock = dial(waiting, stack)
    heard: list[dict[str, Any] | ChannelError] = []

    def join() -> None:
        try:
            channel = connect(sock, key)
            channel.send(messages.write({**HELLO, **hello}))
            heard.append(messages.read(channel.receive()))
        except ChannelError as error:
            heard.append(error)

    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    end = time.monotonic() + WAIT_S
    while not heard:
        assert time.monotonic() < end, "nothing was heard"
        if (found := waiting.next()) is not None:
            found[1].send(messages.write({"call": "rank", "rank": found[0]}))
            stack.callback(found[1].close)
    thread.join(WAIT_S)
    return heard[0]


def test_a_process_joins_and_a_second_one_of_its_host_is_refused(waiting: Listener, stack: ExitStack) -> None:
    assert ask(waiting, stack) == {"call": "rank", "rank": 1}
    again = ask(waiting, stack)
    assert isinstance(again, dict) and "rank 1 (studio-2) has joined already" in again["why"]
    assert ask(waiting, stack, rank=2) == {"call": "rank", "rank": 2}
    assert waiting.last_refusal is not None and "joined already" in waiting.last_refusal


def test_another_version_is_refused_on_both_sides(
    waiting: Listener, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    heard = ask(waiting, stack, versions={"pippin": "2"})
    why = "it has pippin 2, and rank 0 has pippin 1; install the same on every machine"
    assert heard == {"call": "refused", "why": why}
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"a process at 127.0.0.1 was refused: {why}"]


def test_another_key_is_refused_on_both_sides_and_logged_once(
    waiting: Listener, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        heard = ask(waiting, stack, bytes(32))
        assert isinstance(heard, NotAuthenticated) and "copy rank 0's key file" in str(heard)
    assert len(caplog.records) == 1 and "another key" in caplog.text
    assert ask(waiting, stack) == {"call": "rank", "rank": 1}


def test_connections_that_say_nothing_keep_no_rank_out(
    waiting: Listener, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "_MOST_PENDING", 4)
    monkeypatch.setattr(listener_module, "accept", partial(accept, within_s=10 * WAIT_S))
    silent = [dial(waiting, stack) for _ in range(9)]
    assert ask(waiting, stack) == {"call": "rank", "rank": 1}
    silent[0].settimeout(WAIT_S)
    while silent[0].recv(1024):
        pass  # the greeting, and then the end: the oldest has made way


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n" * 9, bytes(4096)], ids=["http", "zeros"])
def test_whatever_else_speaks_there_is_cut_off(waiting: Listener, stack: ExitStack, sent: bytes) -> None:
    sock = dial(waiting, stack)
    sock.settimeout(WAIT_S)
    sock.sendall(sent)
    assert waiting.next() is None
    try:
        while sock.recv(1024):
            pass
    except ConnectionResetError:
        pass
    assert ask(waiting, stack) == {"call": "rank", "rank": 1}


def test_a_hello_that_is_none_joins_nothing(waiting: Listener, stack: ExitStack) -> None:
    sock = dial(waiting, stack)
    ended: list[ChannelError] = []

    def speak() -> None:
        channel = connect(sock, KEY)
        channel._socket.sendall(struct.pack("!I", 5) + b"hello" + bytes(32))
        try:
            channel.receive()
        except ChannelError as error:
            ended.append(error)

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    while thread.is_alive():
        assert waiting.next() is None
    assert ended


def test_a_port_that_is_taken_is_said_in_one_line(waiting: Listener) -> None:
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{waiting.port}: Address already in use"):
        Listener(LOOPBACK, waiting.port, KEY, Seats([], {}))
