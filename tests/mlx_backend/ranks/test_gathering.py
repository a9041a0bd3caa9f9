"""Rank 0's side of a start: every rank learns its place and its model, or the start fails with one line."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import EngineConfig, LoadProgress, RankHost, RankHosts, RanksConfig
from mlx_backend.core.membership import Membership
from mlx_backend.ranks.addresses import free_addresses, parse
from mlx_backend.ranks.channel import connect
from mlx_backend.ranks.follower import FAILED, REFUSED, Follower
from mlx_backend.ranks.gathering import Gathering, memberships_of
from mlx_backend.ranks.key import read_key
from mlx_backend.ranks.runner import RanksRunner
from mlx_backend.runners.mock import MockRunner
from tests.mlx_backend.model.test_fingerprint import write

WAIT_S = 60.0
LOOPBACK = ("127.0.0.1",)


@pytest.fixture
def key(tmp_path: Path) -> str:
    file = tmp_path / "key"
    file.write_text("k" * 64)
    file.chmod(0o600)
    return f"@{file}"


def config_of(key: str, count: int = 2, join_s: float = WAIT_S, **changes: Any) -> EngineConfig:
    listen, *addresses = free_addresses(count + 1)
    hosts = tuple(RankHost(name=f"studio-{rank}", ips=LOOPBACK, address=each) for rank, each in enumerate(addresses))
    ranks = RanksConfig(count=count, hostfile="hosts.json", key=key, join_s=join_s)
    config = EngineConfig(
        model_path="mock", backend="mock", ranks=ranks, hosts=RankHosts(model="owner/model", listen=listen, hosts=hosts)
    )
    return replace(config, **changes)


class Joining:
    """A follower on a thread, as `pippin join` runs one."""

    def __init__(self, config: EngineConfig, folder: Path = Path("mock"), rank: int | None = None) -> None:
        self._config, self._folder, self._rank = config, folder, rank
        self.codes: list[int] = []
        self.asked: list[str] = []
        self.built: list[tuple[EngineConfig, Membership]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        assert self._config.hosts is not None
        address = parse(self._config.hosts.listen)
        end = time.monotonic() + WAIT_S
        while True:
            try:
                sock = socket.create_connection(address)
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.01)
        channel = connect(sock, read_key(self._config.ranks.key or ""))
        self.codes.append(Follower(channel, self._rank, self._build, None, self.codes.append, self._find).run())
        channel.close()

    def _build(self, config: EngineConfig, membership: Membership) -> MockRunner:
        self.built.append((config, membership))
        return MockRunner(config)

    def _find(self, name: str) -> Path:
        self.asked.append(name)
        return self._folder

    def code(self) -> int:
        self._thread.join(WAIT_S)
        return self.codes[0]


@pytest.fixture
def leader(key: str) -> Iterator[list[RanksRunner]]:
    found: list[RanksRunner] = []
    yield found
    for each in found:
        each.close()


def ignore(progress: LoadProgress) -> None:
    pass


def load(leader: list[RanksRunner], config: EngineConfig) -> None:
    leader.append(RanksRunner(config, lambda membership: MockRunner(config)))
    leader[0].load(ignore)


def test_ranks_of_a_hostfile_join_are_told_their_place_and_leave_with_0(key: str, leader: list[RanksRunner]) -> None:
    config = config_of(key, count=3, ranks_here=1)
    joining = [Joining(config, rank=2), Joining(config)]
    load(leader, config)
    told = [each.built[0] for each in joining]
    assert config.hosts is not None
    addresses = tuple(host.address for host in config.hosts.hosts)
    assert [membership for _, membership in told] == [
        Membership(rank, addresses, "tensor", num_here=3) for rank in (2, 1)
    ]
    sent = told[0][0]
    assert sent.ranks.count == 3 and sent.hosts is None and sent.ranks.key is None and sent.ranks.hostfile is None
    leader[0].close()
    assert [each.code() for each in joining] == [0, 0]


def test_a_rank_that_does_not_come_ends_the_start_with_what_to_run(key: str) -> None:
    polls = iter(range(20))  # each takes 0.1 s

    def poll() -> None:
        next(polls)

    config = config_of(key, join_s=0.01)
    with pytest.raises(ModelLoadError, match=r"rank 1 \(studio-1\) did not join within 0 s; there: pippin join 127.*"):
        Gathering(config).gather(lambda *_: None, poll)


def test_a_start_that_is_given_up_stops_waiting(key: str) -> None:
    def give_up() -> None:
        raise ModelLoadError("closed")

    with pytest.raises(ModelLoadError, match="closed"):
        Gathering(config_of(key)).gather(lambda *_: None, give_up)


@pytest.mark.parametrize("given", [None, "secret", "@/no/such/file"])
def test_a_key_that_cannot_be_read_ends_the_start(key: str, given: str | None) -> None:
    config = config_of(key)
    config = replace(config, ranks=replace(config.ranks, hostfile=None, key=given))
    with pytest.raises(ModelLoadError, match=r"ranks\.key: "):
        Gathering(config).gather(lambda *_: None, lambda: None)


def test_a_port_that_is_taken_ends_the_start(key: str) -> None:
    config = config_of(key)
    assert config.hosts is not None
    with (
        socket.create_server(parse(config.hosts.listen)),
        pytest.raises(ModelLoadError, match=r"set another ranks\.port"),
    ):
        Gathering(config).gather(lambda *_: None, lambda: None)


def test_other_weights_end_the_start_on_both_sides(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leader: list[RanksRunner]
) -> None:
    own, other = write(tmp_path / "own"), write(tmp_path / "other")
    with (other / "config.json").open("w") as file:
        file.write('{"model_type": "llama", "vocab_size": 8}')
    config = config_of(key, model_path=str(own), backend="mlx")
    joining = Joining(config, other)
    with pytest.raises(ModelLoadError, match=r"rank 1 failed: .*other/config.json differs from rank 0's on rank 1's"):
        load(leader, config)
    assert joining.code() == REFUSED
    assert joining.asked == ["owner/model"] and joining.built == []


def test_the_same_weights_elsewhere_are_what_is_loaded(key: str, tmp_path: Path, leader: list[RanksRunner]) -> None:
    own, other = write(tmp_path / "own"), write(tmp_path / "other")
    config = config_of(key, model_path=str(own), backend="mlx")
    joining = Joining(config, other)
    load(leader, config)
    assert [each.model_path for each, _ in joining.built] == [str(other)]


def test_a_rank_that_cannot_reach_the_next_ends_the_start_on_both_sides(
    key: str, monkeypatch: pytest.MonkeyPatch, leader: list[RanksRunner]
) -> None:
    config = config_of(key)
    assert config.hosts is not None
    with socket.create_server(parse(config.hosts.hosts[1].address)):
        joining = Joining(config)
        with pytest.raises(ModelLoadError, match=r"rank 1 failed: .*rank 1 cannot listen on .* free the port"):
            load(leader, config)
    assert joining.code() == FAILED


def test_a_rank_0_that_cannot_reach_the_next_says_so_on_both_sides(
    key: str, leader: list[RanksRunner], caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(key)
    assert config.hosts is not None
    with socket.create_server(parse(config.hosts.hosts[0].address)):
        joining = Joining(config)
        with pytest.raises(ModelLoadError, match=r"rank 0 cannot listen on"):
            load(leader, config)
    assert joining.code() == REFUSED
    assert "refused: ranks: rank 0 cannot listen on" in caplog.text


def test_machines_that_hold_several_ranks_divide_their_memory(key: str) -> None:
    config = config_of(key, count=3)
    assert config.hosts is not None
    ips: list[tuple[str, ...]] = [("10.0.0.1",), ("10.0.0.2", "10.0.1.2"), ("10.0.1.2",)]
    hosts = tuple(replace(host, ips=each) for host, each in zip(config.hosts.hosts, ips, strict=True))
    config = replace(config, hosts=replace(config.hosts, hosts=hosts))
    assert [each.num_here for each in memberships_of(config)] == [1, 2, 2]
    local = replace(config, hosts=None, ranks=replace(config.ranks, hostfile=None, split="2,1,1"))
    assert [(each.num_here, each.split) for each in memberships_of(local)] == [(3, (2, 1, 1))] * 3


def test_a_ring_connects_over_the_further_addresses_that_every_host_has(key: str) -> None:
    config = config_of(key)
    assert config.hosts is not None
    first, second = config.hosts.hosts
    both = (replace(first, further=("10.0.1.1:1",)), replace(second, further=("10.0.1.2:1",)))
    for hosts, further in ((both, (("10.0.1.1:1",), ("10.0.1.2:1",))), ((first, both[1]), ())):
        told = memberships_of(replace(config, hosts=replace(config.hosts, hosts=hosts)))
        assert [each.further for each in told] == [further, further]


def test_rdma_is_used_where_every_host_has_it(key: str) -> None:
    config = config_of(key)
    assert config.hosts is not None
    first, second = config.hosts.hosts
    both = (replace(first, rdma=(None, "a")), replace(second, rdma=("b", None)))
    for hosts, rdma in ((both, ((None, "a"), ("b", None))), ((first, both[1]), ())):
        told = memberships_of(replace(config, hosts=replace(config.hosts, hosts=hosts)))
        assert [each.rdma for each in told] == [rdma, rdma]
