"""Frames: what is packed is what is unpacked, in whatever pieces it arrives."""

from __future__ import annotations

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.grammars import wire
from server.grammars.limits import Limits
from server.grammars.wire import Ask, Death, Kind, Mask, Vocabulary

IDS = st.integers(0, 2**32 - 1)


@given(st.lists(st.binary(max_size=9), max_size=20), st.lists(IDS, min_size=1, max_size=3), st.lists(IDS, max_size=3))
def test_a_vocabulary(tokens: list[bytes], eos_ids: list[int], special_ids: list[int]) -> None:
    given = Vocabulary(tokens, eos_ids, special_ids)
    assert wire.unpack_vocabulary(wire.pack_vocabulary(given)) == given


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=5))
def test_sources(larks: list[str]) -> None:
    assert wire.unpack_source(wire.pack_source(larks)) == larks


@given(st.lists(st.tuples(IDS, st.lists(IDS, max_size=5)), max_size=5))
def test_what_is_asked(asks: list[tuple[int, list[int]]]) -> None:
    given = [Ask(state_id, token_ids) for state_id, token_ids in asks]
    assert wire.unpack_asks(wire.pack_asks(given)) == given


@given(st.integers(0, 2**40), st.lists(st.tuples(IDS, st.binary(max_size=40) | st.sampled_from(["", "ü"])), max_size=5))
def test_what_is_answered(used_bytes: int, masks: list[tuple[int, bytes | str]]) -> None:
    given = [Mask(i, failure=each) if isinstance(each, str) else Mask(i, each) for i, each in masks]
    assert wire.unpack_answer(wire.pack_answer(used_bytes, given)) == (used_bytes, given)


@given(IDS, st.integers(0, 2**40))
def test_what_else_passes(state_id: int, used_bytes: int) -> None:
    assert wire.unpack_drop(wire.pack_drop(state_id)) == state_id
    assert wire.unpack_compiled(wire.pack_compiled(used_bytes, 0.5)) == (used_bytes, 0.5)


@pytest.mark.parametrize("status", [0, 9, 768, None])
def test_a_death(status: int | None) -> None:
    assert wire.unpack_died(wire.pack_died(Death(status))) == Death(status)


def test_limits() -> None:
    limits = Limits(5.0, 0.1, 1 << 33, 1 << 34)
    assert Limits.unpack(limits.pack()) == limits


def test_a_frame_arrives_whole_whatever_its_pieces() -> None:
    ours, theirs = socket.socketpair()
    frame = wire.frame(Kind.ANSWER, b"x" * 1_000_000)

    def send() -> None:
        for start in range(0, len(frame), 70_001):
            theirs.sendall(frame[start : start + 70_001])

    with ours, theirs:
        sender = threading.Thread(target=send)
        sender.start()
        assert wire.receive(ours) == (Kind.ANSWER, b"x" * 1_000_000)
        sender.join()


@pytest.mark.parametrize("size", [0, 3, 6])
def test_a_socket_that_closes_within_a_frame(size: int) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(wire.frame(Kind.ANSWER, b"abc")[:size])
        theirs.close()
        with pytest.raises(wire.Closed):
            wire.receive(ours)
