"""Where ranks are, by a hostfile: addresses as numbers, ports that do not meet, and one line for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_backend.api.interface import RankHosts, RanksConfig
from server import rank_hosts
from server.config import Config, ConfigError, engine_config
from server.hostfile import HostfileError, parse
from server.rank_hosts import hosts_of, placed

NAMES = {"studio-1": "10.0.0.1", "studio-2": "10.0.0.2"}
RDMA = [
    {"ssh": "studio-1", "ips": ["10.0.0.1"], "rdma": [None, "rdma_en5"]},
    {"ssh": "me@studio-2", "ips": [], "rdma": ["rdma_en5", None]},
]


def hosts(rows: object, port: int = 7400) -> RankHosts:
    return hosts_of(parse(json.dumps(rows).encode()), port, "owner/model", NAMES.get)


def test_a_file_without_ports_gets_them() -> None:
    found = hosts([{"ssh": "studio-1", "ips": ["10.0.0.1"]}, {"ssh": "b", "ips": ["studio-2"]}])
    assert found.listen == "10.0.0.1:7400" and found.model == "owner/model"
    assert [host.address for host in found.hosts] == ["10.0.0.1:7401", "10.0.0.2:7401"]
    assert [(host.ips, host.further) for host in found.hosts] == [(("10.0.0.1",), ()), (("10.0.0.2",), ())]


def test_the_ring_connects_over_every_address() -> None:
    found = hosts([{"ssh": "a", "ips": ["10.0.0.1", "10.0.9.1"]}, {"ssh": "b", "ips": ["studio-2", "10.0.9.2"]}])
    assert [host.ips for host in found.hosts] == [("10.0.0.1", "10.0.9.1"), ("10.0.0.2", "10.0.9.2")]
    assert [host.further for host in found.hosts] == [("10.0.9.1:7401",), ("10.0.9.2:7401",)]
    twice = hosts([["10.0.0.1:7501", "10.0.0.1:7502"], ["10.0.0.2:7501", "10.0.0.2:7502"]])
    assert [host.further for host in twice.hosts] == [("10.0.0.1:7502",), ("10.0.0.2:7502",)]


def test_of_rdma_the_first_address_counts() -> None:
    several = [{**RDMA[0], "ips": ["10.0.0.1", "fe80::1"]}, {**RDMA[1], "ips": ["fe80::2"]}]
    assert [(host.ips, host.further) for host in hosts(several).hosts] == [
        (("10.0.0.1", "fe80::1"), ()),
        (("fe80::2",), ()),
    ]


def test_ranks_of_one_machine_have_the_ports_of_the_file() -> None:
    found = hosts([["127.0.0.1:7501"], ["127.0.0.1:7502"]])
    assert [host.address for host in found.hosts] == ["127.0.0.1:7501", "127.0.0.1:7502"]
    with pytest.raises(HostfileError, match="list each host once"):
        hosts([["127.0.0.1:7501"], ["127.0.0.1:7501"]])


def test_rdma_is_used_where_the_file_has_it_and_names_no_ring() -> None:
    found = hosts(RDMA)
    assert [host.rdma for host in found.hosts] == [(None, "rdma_en5"), ("rdma_en5", None)]
    assert found.hosts[1].ips == ("10.0.0.2",)
    with pytest.raises(HostfileError, match="no address in ips, which the ring needs"):
        hosts({"backend": "ring", "hosts": RDMA})
    ring = [{**row, "ips": ["studio-2"] if not row["ips"] else row["ips"]} for row in RDMA]
    assert [host.rdma for host in hosts({"backend": "ring", "hosts": ring}).hosts] == [(), ()]


@pytest.mark.parametrize(
    ("rows", "port", "says"),
    [
        ([["10.0.0.1:7400"], ["10.0.0.2:7400"]], 7400, "host 0 .* has 10.0.0.1:7400 for MLX's messages, where rank"),
        (
            [["10.0.0.1:7401", "10.0.9.1:7400"], ["10.0.0.2:7401"]],
            7400,
            "host 1 .* has 1 addr.*, and host 0 has 2;",
        ),
        (
            [["[fe80::1]:7401"], ["10.0.0.2:7401"]],
            7400,
            "host 0 .*: MLX's ring takes IPv4 addresses alone, not fe",
        ),
        (
            [["10.0.0.1:7401", "[fe80::1]:7401"], ["10.0.0.2:7401"]],
            7400,
            "IPv4 addresses alone, not fe80::1; wr",
        ),
        ([{**RDMA[0], "ips": ["fe80::1"]}, RDMA[1]], 7400, "jaccl takes an IPv4 address of rank 0 alone, not fe80::1"),
        ([["nowhere:7401"], ["10.0.0.2:7401"]], 7400, "no name server knows an IPv4 address of nowhere; write the"),
        (
            [["10.0.0.1:1", "nowhere:1"], ["10.0.0.2:1", "10.0.1.2:1"]],
            7400,
            "knows an IPv4 address of nowhere; write",
        ),
        ([["studio-1:7401"], ["10.0.0.1:7401"]], 7400, "host 1 .* has 10.0.0.1:7401 for .*, as host 0 has; list each"),
        (
            [["studio-1:7401", "10.0.0.1:7401"], ["10.0.0.2:1", "10.0.0.2:2"]],
            7400,
            "host 0 .* as host 0 has; list ea",
        ),
    ],
)
def test_what_cannot_be_is_one_line(rows: object, port: int, says: str) -> None:
    with pytest.raises(HostfileError, match=says) as caught:
        hosts(rows, port)
    assert "\n" not in str(caught.value)


@pytest.fixture
def key(tmp_path: Path) -> str:
    file = tmp_path / "key"
    file.write_text("k" * 64)
    file.chmod(0o600)
    return f"@{file}"


def test_the_engine_is_told_of_the_machines(tmp_path: Path, key: str) -> None:
    file = tmp_path / "hosts.json"
    file.write_text('[["127.0.0.1:7501"], ["127.0.0.1:7502"]]')
    config = Config(backend="mock", model="owner/model", ranks=RanksConfig(hostfile=str(file), key=key))
    told = placed(config, engine_config(config, "mock"))
    assert told.ranks.count == 2 and told.hosts is not None and told.hosts.model == "owner/model"
    alone = Config(backend="mock")
    assert placed(alone, engine_config(alone, "mock")).hosts is None
    here = Config(model=str(tmp_path), ranks=RanksConfig(count=2, hostfile=str(file), key=key))
    assert placed(here, told).hosts == rank_hosts.hosts_of(parse(file.read_bytes()), 7400, str(tmp_path), NAMES.get)


@pytest.mark.parametrize(
    ("content", "count", "says"),
    [
        ("[", 1, "no JSON"),
        ('[["127.0.0.1:7501"], ["127.0.0.1:7502"]]', 3, "ranks.count 3: .* lists 2 hosts"),
        (None, 1, "No such"),
    ],
)
def test_a_hostfile_that_cannot_be_used_is_a_configuration_error(
    tmp_path: Path, key: str, content: str | None, count: int, says: str
) -> None:
    file = tmp_path / "hosts.json"
    if content is not None:
        file.write_text(content)
    config = Config(backend="mock", ranks=RanksConfig(count=count, hostfile=str(file), key=key))
    with pytest.raises(ConfigError, match=says):
        placed(config, engine_config(config, "mock"))


@pytest.mark.parametrize("given", [None, "@-", "@none", "k" * 64])
def test_a_key_that_cannot_be_read_is_a_configuration_error(tmp_path: Path, given: str | None) -> None:
    file = tmp_path / "hosts.json"
    file.write_text('[["127.0.0.1:7501"], ["127.0.0.1:7502"]]')
    config = Config(backend="mock", ranks=RanksConfig(hostfile=str(file), key=given))
    with pytest.raises(ConfigError, match=r"ranks\.key: ") as caught:
        placed(config, engine_config(config, "mock"))
    assert "k" * 64 not in str(caught.value)


def test_names_are_resolved_by_the_system() -> None:
    assert rank_hosts.resolve("localhost") == "127.0.0.1"
    assert rank_hosts.resolve("no-such-host.invalid") is None
