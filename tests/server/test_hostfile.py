"""Hostfiles: those that are read, and one line for each that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.hostfile import MOST_HOSTS, Address, Hostfile, HostfileError, parse, read

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.local)?", fullmatch=True)
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
PORTS = st.integers(1, 65535)
KEYS = st.sampled_from(["ssh", "ips", "rdma", "hosts", "backend"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner),
    max_leaves=20,
)
HOSTS = st.lists(
    st.tuples(NAMES, ADDRESSES),
    min_size=2,
    max_size=MOST_HOSTS,
    unique_by=(lambda row: row[0], lambda row: row[1]),
)


def parsed(document: Any) -> Hostfile:
    return parse(json.dumps(document).encode())


def refusal(document: Any) -> str:
    with pytest.raises(HostfileError) as refused:
        parsed(document)
    return str(refused.value)


def rows(*names: str) -> list[dict[str, Any]]:
    return [{"ssh": name, "ips": [f"192.168.1.{place + 10}"], "rdma": []} for place, name in enumerate(names)]


@given(HOSTS, st.booleans())
def test_what_mlx_writes_is_read(hosts: list[tuple[str, str]], is_plain: bool) -> None:
    listed = [{"ssh": name, "ips": [address]} for name, address in hosts]
    found = parsed(listed if is_plain else {"backend": "ring", "envs": ["A=1"], "hosts": listed})
    assert [(host.rank, host.name, host.addresses) for host in found.hosts] == [
        (rank, name, (Address(address),)) for rank, (name, address) in enumerate(hosts)
    ]
    assert (found.backend, found.size) == ("ring", len(hosts))


@given(st.lists(st.tuples(ADDRESSES, PORTS), min_size=2, max_size=MOST_HOSTS, unique=True))
def test_what_the_ring_reads_is_read(places: list[tuple[str, int]]) -> None:
    texts = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in places]
    found = parsed([[text] for text in texts])
    assert [host.addresses for host in found.hosts] == [(Address(host, port),) for host, port in places]
    assert [str(host.addresses[0]) for host in found.hosts] == texts


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_one_line(content: bytes) -> None:
    _read_or_refused(content)


@settings(max_examples=50)
@given(JSON)
def test_any_json_is_read_or_refused_in_one_line(document: Any) -> None:
    _read_or_refused(json.dumps(document).encode())
    _read_or_refused(json.dumps([{"ssh": "a", "ips": document}, {"ssh": "b", "rdma": document}]).encode())
    _read_or_refused(json.dumps([[document], document]).encode())
    _read_or_refused(json.dumps([{"ssh": document}, {"ssh": "b"}]).encode())


def _read_or_refused(content: bytes) -> None:
    try:
        found = parse(content)
    except HostfileError as error:
        assert str(error).isprintable() and len(str(error)) < 400
    else:
        assert 2 <= found.size <= MOST_HOSTS
        assert all(str(address).isprintable() for host in found.hosts for address in host.addresses)


@given(st.lists(NAMES, min_size=2, max_size=6, unique=True), st.data())
def test_a_host_that_is_there_twice_is_named(names: list[str], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(names) - 1))
    listed = rows(*names)
    again = {"ssh": names[first].upper(), "ips": ["10.0.0.1"]}
    assert refusal([*listed, again]).startswith(f"hosts {first} and {len(names)} are both {names[first].upper()}")
    address = {"ssh": "another.example", "ips": listed[first]["ips"]}
    assert f"hosts {first} and {len(names)} are both 192.168.1.{first + 10}" in refusal([*listed, address])


def test_one_machine_with_two_ports_is_two_ranks() -> None:
    assert parsed([["127.0.0.1:7100"], ["127.0.0.1:7101"]]).size == 2
    assert "are both 127.0.0.1:7100" in refusal([["127.0.0.1:7100"], ["127.0.0.1:7100"]])
    assert "are both [0:0:0:0:0:0:0:1]:7100" in refusal([["[::1]:7100"], ["[0:0:0:0:0:0:0:1]:7100"]])


def test_rdma_makes_it_jaccl() -> None:
    pair = [
        {"ssh": "a", "ips": ["192.168.1.10"], "rdma": [None, "rdma_en5"]},
        {"ssh": "b", "ips": [], "rdma": [["rdma_en5", "rdma_en4"], None]},
    ]
    found = parsed(pair)
    assert (found.backend, found.hosts[1].rdma) == ("jaccl", ("rdma_en5", None))
    assert parsed({"backend": "jaccl-ring", "hosts": pair}).backend == "jaccl"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "it lists 0 hosts; list one for each rank, at least 2"),
        (rows("a"), "it lists 1 host; list one for each rank"),
        (rows(*(f"h{n}" for n in range(MOST_HOSTS + 1))), "it lists 17 hosts; 16 at most"),
        ({"backend": "ring"}, "it has no list `hosts`"),
        ({"backend": "mpi", "hosts": rows("a", "b")}, 'backend "mpi": one of ring, jaccl, jaccl-ring'),
        ("a,b", 'it holds "a,b"; write a list of hosts'),
        ([[], ["127.0.0.1:1"]], "host 0 has no address"),
        ([["127.0.0.1"], ["127.0.0.1:1"]], "host 0: 127.0.0.1 has no port; write one such as 192.168.1.10:7100"),
        ([["127.0.0.1:0"], ["127.0.0.1:1"]], 'host 0: port "0" of 127.0.0.1: a whole number from 1 to 65535'),
        ([["127.0.0.1:65536"], ["127.0.0.1:1"]], 'port "65536"'),
        ([["127.0.0.1:http"], ["127.0.0.1:1"]], 'port "http"'),
        ([["127.0.0.1:٣"], ["127.0.0.1:1"]], "a whole number from 1"),
        ([["127.0.0.1:"], ["127.0.0.1:1"]], 'port ""'),
        ([["1.2.3:1"], ["127.0.0.1:1"]], '"1.2.3:1" is no address'),
        ([["[::1:7"], ["127.0.0.1:1"]], "is no address"),
        ([[7100], ["127.0.0.1:1"]], "host 0: address 7100 is no text"),
        ([{"ips": []}, {"ssh": "b"}], "host 0: ssh null is no name of a host"),
        ([{"ssh": "-oA"}, {"ssh": "b"}], "is no name of a host"),
        ([{"ssh": "a\n@b"}, {"ssh": "b"}], "is no name of a host"),
        ([{"ssh": "a", "ips": "10.0.0.1"}, {"ssh": "b"}], 'host 0 (a): ips is "10.0.0.1"; write a list'),
        ([{"ssh": "a"}, *rows("b")], "host 0 (a) has no address in ips, which the ring needs"),
        ([{"ssh": "a", "rdma": ["x"]}, *rows("b")], "host 0 (a): rdma has 1 devices; write a device for each of 2"),
        ([{"ssh": "a", "rdma": ["x", None]}, *rows("b")], "rdma names x for the rank itself; write null in place 0"),
        ([{"ssh": "a", "rdma": [None, None]}, *rows("b")], "rdma names no device at all"),
        ([{"ssh": "a", "rdma": [None, 5]}, *rows("b")], "rdma device 5; write a name such as rdma_en5"),
        ([{"ssh": "a", "rdma": [None, "x"]}, *rows("b")], "host 1 (b) has no rdma, and others have"),
        ({"backend": "jaccl", "hosts": rows("a", "b")}, "host 0 (a) has no rdma, which jaccl needs"),
        ([5, *rows("b")], 'host 0 is 5; write {"ssh": NAME, "ips": [ADDRESS]}'),
    ],
)
def test_what_is_wrong_and_what_to_do(document: Any, message: str) -> None:
    assert message in refusal(document)


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "hosts.json"
    with pytest.raises(HostfileError, match="No such file or directory; name a file"):
        read(file)
    file.write_text("[{")
    with pytest.raises(HostfileError, match=r"hosts\.json: no JSON in line 1, column 3"):
        read(file)
    file.write_bytes(b"\xff")
    with pytest.raises(HostfileError, match="it is not UTF-8"):
        read(file)
    file.write_text("[" * 100_000)
    with pytest.raises(HostfileError, match="its JSON cannot be read"):
        read(file)
    file.write_text(" " * 2_000_000)
    with pytest.raises(HostfileError, match="larger than"):
        read(file)
    file.write_text(json.dumps(rows("a", "b")))
    assert read(file).size == 2
