"""What the doctor finds of several machines, from facts that are made up; and once over loopback.

The texts of ibv_devices and ibv_devinfo are those of Apple's TN3205; that of networksetup is by its manual.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server import model_files, pocket
from server.cli import app
from server.commands import doctor_ranks
from server.commands.doctor_join import WAITS
from server.commands.doctor_ranks import (
    RankFacts,
    _is_here,
    _reach,
    examine,
    fingerprint,
    read_bridge,
    read_devices,
    read_states,
)
from server.commands.finding import Finding

DEVICES = """device                 node GUID
------              ----------------
rdma_en2            e0c5797d9c8fac05
rdma_en3            e1c5797d9c8fac05
rdma_en5            e2c5797d9c8fac05
"""
INFO = """hca_id:\trdma_en2
\ttransport:\t\t\tThunderbolt (100)
\tphys_port_cnt:\t\t\t1
\t\tport:\t1
\t\t\tstate:\t\t\tPORT_DOWN (1)
hca_id:\trdma_en5
\ttransport:\t\t\tThunderbolt (100)
\tphys_port_cnt:\t\t\t1
\t\tport:\t1
\t\t\tstate:\t\t\tPORT_ACTIVE (4)
"""
SERVICES = """An asterisk (*) denotes that a network service is disabled.
Ethernet
*Thunderbolt Bridge
Wi-Fi
"""
PAIR: list[dict[str, Any]] = [
    {"ssh": "a", "ips": ["192.168.1.10"], "rdma": [None, "rdma_en5"]},
    {"ssh": "b", "ips": ["192.168.1.11"], "rdma": ["rdma_en5", None]},
]
RING = [{"ssh": row["ssh"], "ips": row["ips"]} for row in PAIR]
COMMANDS = {"ibv_devices": DEVICES, "ibv_devinfo": INFO, "networksetup": SERVICES}


@pytest.fixture
def facts() -> RankFacts:
    """The first of two Macs on which all is well."""
    return RankFacts(
        platform="darwin",
        macos=lambda: (26, 5, 2),
        version_of={"mlx": "0.32.4", "mlx-lm": "0.32.2"}.get,
        is_here=lambda host: host == "192.168.1.10",
        reach=lambda host, port: "",
        free=lambda host, port: "",
        knock=lambda host, port: WAITS,
        resolve=lambda name: None,
        output=lambda command: COMMANDS.get(command[0]),
    )


def found(facts: RankFacts, tmp_path: Path, document: Any, model: Path | None = None) -> dict[str, Finding]:
    file = tmp_path / "hosts.json"
    file.write_text(json.dumps(document))
    return {each.what: each for each in examine(facts, file, model)}


def printing(**changed: str | None) -> Any:
    def output(command: Sequence[str]) -> str | None:
        return {**COMMANDS, **changed}.get(command[0])

    return output


def test_two_macs_on_which_all_is_well(facts: RankFacts, tmp_path: Path) -> None:
    said = found(facts, tmp_path, PAIR, pocket.folder())
    assert {each.state for what, each in said.items() if what != "model files"} == {"ok"}
    assert said["hostfile"].text == "2 ranks over MLX's jaccl: a, b"
    assert said["this machine"].text == "is rank 0"
    assert said["rank 1 (b)"].text == "192.168.1.11 answers"
    assert "rank 0 (a)" not in said
    assert "mlx 0.32.4, mlx-lm 0.32.2; the other machines must report the same" in said["versions"].text
    assert said["join port"].text == "192.168.1.10:7400 is free"
    assert said["MLX's port"].text == "192.168.1.10:7401 is free"
    assert said["RDMA"].text == "rdma_en5 are active"
    assert said["Thunderbolt Bridge"].text == "is disabled"


def test_a_broken_file_is_one_finding(facts: RankFacts, tmp_path: Path) -> None:
    (only,) = found(facts, tmp_path, [RING[0], RING[0]]).values()
    assert (only.what, only.state) == ("hostfile", "problem")
    assert "hosts 0 and 1 are both" in only.text


def test_what_the_ring_cannot_use_is_said_as_serve_says_it(facts: RankFacts, tmp_path: Path) -> None:
    (only,) = found(facts, tmp_path, [["[fe80::1]:7401"], ["10.0.0.2:7401"]]).values()
    assert only.state == "problem" and "takes IPv4 addresses alone, not fe80::1" in only.text


def test_versions_that_are_missing_are_a_problem(facts: RankFacts, tmp_path: Path) -> None:
    finding = found(replace(facts, version_of={"mlx": "0.32.4"}.get), tmp_path, RING)["versions"]
    assert finding.state == "problem" and "mlx-lm not installed" in finding.text and "scripts/install" in finding.advice


def test_over_the_ring_nothing_is_asked_of_rdma(facts: RankFacts, tmp_path: Path) -> None:
    said = found(replace(facts, platform="linux"), tmp_path, RING)
    assert {"RDMA", "Thunderbolt Bridge"}.isdisjoint(said)


def test_hosts_that_do_not_answer_are_named_with_the_reason(facts: RankFacts, tmp_path: Path) -> None:
    asked: list[tuple[str, int]] = []

    def reach(host: str, port: int) -> str:
        asked.append((host, port))
        return "No route to host"

    said = found(replace(facts, reach=reach), tmp_path, [["192.168.1.10:7100"], ["192.168.1.11:7100"]])
    assert asked == [("192.168.1.11", 7100)]
    found(replace(facts, reach=reach), tmp_path, RING)
    assert asked[1:] == [("192.168.1.11", 7401)], "the port of MLX's messages, where the file has none"
    problem = said["rank 1 (192.168.1.11)"]
    assert (problem.state, problem.text) == ("problem", "192.168.1.11 port 7100: No route to host")
    assert "firewall" in problem.advice


def test_a_name_server_that_never_answers_holds_nothing_up(
    facts: RankFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_ranks, "LONGEST_S", 0.05)
    for_ever = threading.Event()

    def reach(host: str, port: int) -> str:
        for_ever.wait()
        return ""

    try:
        said = found(replace(facts, reach=reach), tmp_path, RING)
    finally:
        for_ever.set()
    assert said["rank 1 (b)"].state == "problem" and "no answer within" in said["rank 1 (b)"].text


def test_a_machine_that_is_not_in_the_file(facts: RankFacts, tmp_path: Path) -> None:
    said = found(replace(facts, is_here=lambda host: False), tmp_path, RING)
    assert said["this machine"].state == "warning"
    assert said["rank 0 (a)"].state == "ok"


@pytest.mark.parametrize(
    ("changes", "what", "text", "advice"),
    [
        ({"platform": "linux"}, "RDMA", "jaccl needs Macs", "set backend to ring"),
        ({"macos": lambda: (26, 1)}, "RDMA", "macOS 26.1; 26.2 or newer", "update macOS on every machine"),
        ({"output": printing(ibv_devices=None)}, "RDMA", "ibv_devices is missing", "rdma_ctl enable"),
        ({"output": printing(ibv_devices="device node GUID\n")}, "RDMA", "lists no device", "rdma_ctl enable"),
        (
            {"output": printing(ibv_devices=DEVICES.replace("rdma_en5", "rdma_en6"))},
            "RDMA",
            "names rdma_en5; ibv_devices lists rdma_en2, rdma_en3, rdma_en6",
            "mlx.distributed_config",
        ),
        (
            {"output": printing(ibv_devinfo=INFO.replace("PORT_ACTIVE", "PORT_INIT"))},
            "RDMA",
            "rdma_en5 is PORT_INIT, not PORT_ACTIVE",
            "check the cable",
        ),
        ({"output": printing(ibv_devinfo=None)}, "RDMA", "rdma_en5 is unknown", "check the cable"),
        (
            {"output": printing(networksetup=SERVICES.replace("*Thunder", "Thunder"))},
            "Thunderbolt Bridge",
            "is enabled",
            'networksetup -setnetworkserviceenabled "Thunderbolt Bridge" off',
        ),
    ],
)
def test_rdma_that_is_not_ready(
    facts: RankFacts, tmp_path: Path, changes: dict[str, Any], what: str, text: str, advice: str
) -> None:
    finding = found(replace(facts, **changes), tmp_path, PAIR)[what]
    assert finding.state == "problem"
    assert text in finding.text and advice in finding.advice


def test_what_macos_prints() -> None:
    assert read_devices(DEVICES) == ["rdma_en2", "rdma_en3", "rdma_en5"]
    assert read_devices("") == []
    assert read_states(INFO) == {"rdma_en2": "PORT_DOWN", "rdma_en5": "PORT_ACTIVE"}
    assert read_states("state: PORT_ACTIVE (4)") == {}
    assert [read_bridge(text) for text in (SERVICES, SERVICES.replace("*", ""), "Wi-Fi\n")] == ["off", "on", ""]


# --- model files


def write_record(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    names = ("model.safetensors", "config.json")
    for name in names:
        (folder / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    (folder / model_files.MANIFEST).write_text("".join(f"{digest}  {name}\n" for name in names))
    return folder


def test_equal_files_have_equal_fingerprints(facts: RankFacts, tmp_path: Path) -> None:
    texts = []
    for name, content in (("one", b"{}"), ("two", b"{}"), ("three", b"[]")):
        finding = found(facts, tmp_path, RING, write_record(tmp_path / name, content))["model files"]
        assert finding.state == "warning" and "not verified" in finding.text and "pippin verify" in finding.advice
        texts.append(finding.text)
    assert texts[0] == texts[1] != texts[2]


def test_files_that_were_compared_are_well(facts: RankFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_record(tmp_path / "model", b"{}")
    record = model_files.find_record(folder)
    assert record is not None and model_files.compare(folder, record) == []
    model_files.remember(folder, record)
    finding = found(facts, tmp_path, RING, folder)["model files"]
    assert finding.state == "ok"
    assert f"fingerprint {fingerprint(record)} of 2 files" in finding.text
    assert "the other machines must report the same" in finding.text


def test_fingerprints_do_not_depend_on_the_order() -> None:
    digests = {"a": "1" * 64, "b": "2" * 64}
    one, other = model_files.Record("x", digests), model_files.Record("y", dict(reversed(digests.items())))
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint(model_files.Record("x", {"a": "2" * 64, "b": "1" * 64}))


def test_without_a_record_it_says_how_to_compare_by_hand(facts: RankFacts, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    finding = found(facts, tmp_path, RING, tmp_path / "model")["model files"]
    assert finding.state == "warning"
    assert "shasum -a 256" in finding.advice and "pippin verify model" in finding.advice
    assert found(facts, tmp_path, RING)["model files"].advice == "add -- MODEL"


# --- the machine at hand


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_connections_over_loopback(listening: int) -> None:
    assert _reach("127.0.0.1", listening) == ""
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    assert _reach("127.0.0.1", closed) == ""  # refused: the machine is there
    assert _reach("a.invalid", 22)
    assert _is_here("127.0.0.1")
    assert not _is_here("192.0.2.1") and not _is_here("a.invalid")  # of no machine, by RFC 5737 and 2606


def test_the_command(tmp_path: Path, listening: int) -> None:
    file = tmp_path / "hosts.json"
    file.write_text(json.dumps([[f"127.0.0.1:{listening}"], ["127.0.0.1:1"]]))
    ended = CliRunner().invoke(app, ["doctor", "--json", "--hostfile", str(file), "--", "--backend", "mock"])
    said = {each["what"]: each for each in json.loads(ended.stdout)}
    assert said["this machine"]["text"] == "is rank 0 and 1"
    assert said["join port"]["text"].startswith("127.0.0.1:7400")
    assert said["MLX's port"]["text"].startswith("127.0.0.1:1")
    file.write_text("{")
    ended = CliRunner().invoke(app, ["doctor", "--hostfile", str(file), "--", "--backend", "mock"])
    assert ended.exit_code == 1
    assert "no JSON in line 1" in ended.stdout
