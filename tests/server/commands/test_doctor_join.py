"""The ports of a group, as the doctor finds them: by facts that are made up, and over loopback."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from mlx_backend.api.interface import RankHost, RankHosts
from mlx_backend.ranks.channel import KEY_BYTES, ChannelError, accept
from server.commands import doctor_join
from server.commands.doctor_join import NOTHING, SOMETHING_ELSE, WAITS, check_ports, who_waits, why_not_free
from server.commands.finding import Finding

RING = RankHosts(
    model="m",
    listen="10.0.0.1:7400",
    hosts=(
        RankHost(name="a", ips=("10.0.0.1",), address="10.0.0.1:7401", further=("10.0.1.1:7401",)),
        RankHost(name="b", ips=("10.0.0.2",), address="10.0.0.2:7401", further=("10.0.1.2:7401",)),
    ),
)


def looked_at(here: set[int], hosts: RankHosts = RING, *, free: str = "", knock: str = WAITS) -> list[Finding]:
    return list(check_ports(lambda host, port: free, lambda host, port: knock, hosts, here))


def test_rank_0_looks_whether_its_ports_are_free() -> None:
    assert [each.text for each in looked_at({0})] == [
        "10.0.0.1:7400 is free",
        "10.0.0.1:7401 is free",
        "10.0.1.1:7401 is free",
    ]
    join, *of_mlx = looked_at({0}, free="it is in use")
    assert (join.what, join.state, join.text) == ("join port", "problem", "10.0.0.1:7400: it is in use")
    assert "--ranks-port" in join.advice
    assert [each.what for each in of_mlx if "another port" in each.advice] == ["MLX's port"] * 2


@pytest.mark.parametrize(
    ("knock", "state", "advice"),
    [
        (WAITS, "ok", ""),
        (NOTHING, "ok", ""),
        (SOMETHING_ELSE, "problem", "--ranks-port"),
        ("no answer within 3 s", "problem", "firewall"),
    ],
)
def test_another_rank_looks_whether_it_reaches_rank_0(knock: str, state: str, advice: str) -> None:
    join, *of_mlx = looked_at({1}, knock=knock)
    assert (join.what, join.state, join.text) == ("join port", state, f"10.0.0.1:7400: {knock}")
    assert advice in join.advice and bool(advice) == bool(join.advice)
    assert [each.text for each in of_mlx] == ["10.0.0.2:7401 is free", "10.0.1.2:7401 is free"]


def test_over_rdma_rank_0_alone_listens() -> None:
    hosts = RankHosts(
        model="m",
        listen="10.0.0.1:7400",
        hosts=(
            RankHost(name="a", ips=("10.0.0.1",), address="10.0.0.1:7401", rdma=(None, "rdma_en5")),
            RankHost(name="b", ips=("10.0.0.2",), address="10.0.0.2:7401", rdma=("rdma_en5", None)),
        ),
    )
    assert len(looked_at({0}, hosts)) == 2
    assert [each.what for each in looked_at({1}, hosts)] == ["join port"]


# --- over loopback


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_what_waits_at_a_port_is_told_apart(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    host, port = listening.getsockname()
    given_up: list[str] = []

    def greet() -> None:
        try:
            accept(listening.accept()[0], bytes(KEY_BYTES))
        except ChannelError as error:
            given_up.append(str(error))

    greeting = threading.Thread(target=greet)
    greeting.start()
    assert who_waits(host, port) == WAITS
    greeting.join()
    assert given_up, "nothing more than the greeting is read of it, and nothing is sent"
    monkeypatch.setattr(doctor_join, "KNOCK_S", 0.05)
    assert who_waits(host, port) == SOMETHING_ELSE, "it says nothing"
    listening.close()
    assert who_waits(host, port) == NOTHING
    assert who_waits("a.invalid", port) not in ("", WAITS, NOTHING, SOMETHING_ELSE)


def test_a_port_is_free_or_not(listening: socket.socket) -> None:
    host, port = listening.getsockname()
    assert why_not_free(host, port) == "it is in use"
    listening.close()
    assert why_not_free(host, port) == ""
    assert why_not_free("192.0.2.1", 7400) == os.strerror(errno.EADDRNOTAVAIL), "no address of this machine"
