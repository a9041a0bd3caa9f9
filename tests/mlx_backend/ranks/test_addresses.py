"""Addresses of ranks: what is one, and what is found out of them before MLX would wait for ever."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.core.membership import Membership
from mlx_backend.ranks.addresses import LOOPBACK, Tryout, free_addresses, parse


@given(st.integers(1, 65535), st.sampled_from(["10.0.0.1", "studio-1.local", "[::1]"]))
def test_an_address_is_read_as_it_is_written(port: int, host: str) -> None:
    assert parse(f"{host}:{port}") == (host.strip("[]"), port)


@pytest.mark.parametrize("text", ["", "a", "a:", ":1", "a:0", "a:65536", "a:-1", "a:1e3", "::1:7400", "a:٣", "a: 1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no HOST:PORT, such as 192\.168"):
        parse(text)


@pytest.fixture
def tries() -> Iterator[list[Tryout]]:
    addresses = free_addresses(3)
    found = [Tryout(Membership(rank, addresses, "tensor")) for rank in range(3)]
    yield found
    for each in found:
        each.close()


def test_ranks_that_listen_reach_each_other_and_leave_their_ports_free(tries: list[Tryout]) -> None:
    for step in (Tryout.open, Tryout.reach, Tryout.close, Tryout.open):
        for each in tries:
            step(each)


def test_a_rank_that_cannot_be_reached_is_named(tries: list[Tryout]) -> None:
    tries[0].open()
    tries[2].reach()
    with pytest.raises(ModelLoadError, match=r"rank 1 cannot reach rank 2 at .* refused; check the cable, the"):
        tries[1].reach()


def test_every_connection_of_a_ring_is_tried() -> None:
    addresses, further = free_addresses(2), tuple((each,) for each in free_addresses(2))
    first, second = (Tryout(Membership(rank, addresses, "tensor", further=further)) for rank in range(2))
    with contextlib.closing(first), contextlib.closing(second):
        first.open()
        second.open()
        first.reach()
        second.reach()
        second.close()
        with socket.create_server(parse(addresses[1])), pytest.raises(ModelLoadError, match=f"at {further[1][0]}: "):
            first.reach()
    with socket.create_server(parse(further[0][0])), pytest.raises(ModelLoadError, match="0 cannot listen on"):
        first.open()
    first.close()


def test_a_port_that_is_taken_is_said_before_MLX_waits() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        address = f"{LOOPBACK}:{taken.getsockname()[1]}"
        with pytest.raises(ModelLoadError, match=f"rank 0 cannot listen on {address}: .*; free the port"):
            Tryout(Membership(0, (address, address), "tensor")).open()


def test_over_rdma_only_the_coordinator_listens() -> None:
    rdma = ((None, "rdma_en5"), ("rdma_en5", None))
    addresses = (*free_addresses(1), "studio-2:1")
    ranks = [Tryout(Membership(rank, addresses, "tensor", rdma=rdma)) for rank in range(2)]
    for step in (Tryout.open, Tryout.reach, Tryout.close):
        for each in ranks:
            step(each)
