"""`pippin doctor --hostfile FILE`: problems that would prevent several machines from serving one model together.

Each machine checks only itself and whether the others answer, so run the command on each. Connections are opened
and closed; nothing is sent, loaded or changed. The macOS checks follow Apple's TN3205 and networksetup(8); not run
on a Mac.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import RanksConfig
from mlx_backend.planning.macos import macos_version
from server import __version__, hostfile, model_files, rank_hosts
from server.commands.doctor_join import check_ports, who_waits, why_not_free
from server.commands.finding import Finding
from server.hostfile import Host, Hostfile, HostfileError

T = TypeVar("T")

CONNECT_S = 3.0
"""Time after which a host counts as unreachable."""
LONGEST_S = 5.0
"""The same, including name resolution."""
LEAST_MACOS = (26, 2)
"""First version with RDMA over Thunderbolt."""
PORT = RanksConfig().port
_BRIDGE = "Thunderbolt Bridge"
_DEVICE = re.compile(r"^\s*(\w+)\s+[0-9a-fA-F]{16}\s*$", re.MULTILINE)
_STATE = re.compile(r"hca_id:\s*(\w+)|state:\s*(\w+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFacts:
    """Facts about the machine and the network."""

    platform: str = sys.platform
    macos: Callable[[], tuple[int, ...]] = lambda: macos_version()[0]
    version_of: Callable[[str], str | None] = lambda name: _version_of(name)
    is_here: Callable[[str], bool] = lambda host: _is_here(host)
    reach: Callable[[str, int], str] = lambda host, port: _reach(host, port)
    """Empty: the host answers, if only to refuse the connection. Else the reason it does not."""
    free: Callable[[str, int], str] = why_not_free
    """Empty: this machine can listen there. Else the reason it cannot."""
    knock: Callable[[str, int], str] = who_waits
    """Answer at the address where rank 0 waits."""
    resolve: rank_hosts.Resolve = rank_hosts.resolve
    output: Callable[[Sequence[str]], str | None] = lambda command: _output(command)
    """Output of a command; None if it is missing or fails."""


def examine(facts: RankFacts, file: Path, model: Path | None, port: int = PORT) -> Iterator[Finding]:
    """Yield all findings, in the order in which they matter. `model`: its folder, if known; `port`: ranks.port."""
    try:
        group = hostfile.read(file)
        hosts = rank_hosts.hosts_of(group, port, "", facts.resolve)
    except HostfileError as error:
        yield Finding("hostfile", "problem", str(error))
        return
    names = ", ".join(host.name for host in group.hosts)
    yield Finding("hostfile", "ok", f"{group.size} ranks over MLX's {group.backend}: {names}")
    names_of = [(host, name) for host in group.hosts for name in _names(host)]
    is_here = _at_once(facts.is_here, [(name,) for _, name in names_of], False)
    here = {host.rank for (host, _), found in zip(names_of, is_here, strict=True) if found}
    own = [host for host in group.hosts if host.rank in here]
    yield _check_own(own)
    yield from _check_reach(facts, [host for host in group.hosts if host not in own], port + 1)
    yield from check_ports(facts.free, facts.knock, hosts, here)
    yield _check_versions(facts)
    if group.backend == "jaccl":
        yield from check_rdma(facts, group, own)
    yield _check_model(model)


def _check_own(own: Sequence[Host]) -> Finding:
    if not own:
        advice = "run this on the machines of the hostfile, or correct the addresses there"
        return Finding("this machine", "warning", "is not in the hostfile", advice)
    return Finding("this machine", "ok", f"is rank {' and '.join(str(host.rank) for host in own)}")


def _names(host: Host) -> list[str]:
    """Return the host's addresses, or else its name."""
    return [address.host for address in host.addresses] or [host.name.rpartition("@")[2]]


# --- the network


def _check_reach(facts: RankFacts, hosts: Sequence[Host], port: int) -> Iterator[Finding]:
    """Try the ports of MLX's messages; `port` if the file gives none."""
    places = [(host, name, _port(host, name) or port) for host in hosts for name in _names(host)]
    answers = _at_once(facts.reach, [(name, port) for _, name, port in places], f"no answer within {LONGEST_S:.0f} s")
    for (host, name, port), problem in zip(places, answers, strict=True):
        what = f"rank {host.rank} ({host.name})"
        if not problem:
            yield Finding(what, "ok", f"{name} answers")
            continue
        advice = (
            "check that it is on and in the same network; check the cable, the firewall, and the address in the file"
        )
        yield Finding(what, "problem", f"{name} port {port}: {problem}", advice)


def _at_once(ask: Callable[..., T], asked: Sequence[tuple[Any, ...]], default: T) -> list[T]:
    """Return all answers, `default` for any that takes longer than LONGEST_S: name servers may take minutes."""
    answers = [default] * len(asked)

    def answer(place: int) -> None:
        answers[place] = ask(*asked[place])

    threads = [threading.Thread(target=answer, args=(place,), daemon=True) for place in range(len(asked))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LONGEST_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return list(answers)


def _port(host: Host, name: str) -> int:
    return next((address.port for address in host.addresses if address.host == name), 0)


def _reach(host: str, port: int) -> str:
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S):
            return ""
    except TimeoutError:
        return f"no answer within {CONNECT_S:.0f} s"
    except OSError as error:
        return "" if error.errno == errno.ECONNREFUSED else (error.strerror or str(error))


def _is_here(host: str) -> bool:
    """Return whether a socket can be bound to it, which only addresses of this machine allow."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as tried:
                tried.bind(address)
                return True
    return False


# --- versions and files


def _check_versions(facts: RankFacts) -> Finding:
    found = {name: facts.version_of(name) for name in ("mlx", "mlx-lm")}
    text = ", ".join([f"pippin {__version__}", *(f"{name} {each or 'not installed'}" for name, each in found.items())])
    if None in found.values():
        return Finding("versions", "problem", text, "run scripts/install; use the same Pippin on every machine")
    return Finding("versions", "ok", f"{text}; the other machines must report the same, or rank 0 refuses them")


def _check_model(folder: Path | None) -> Finding:
    """Report the digest of all published digests, without reading weights."""
    if folder is None:
        return Finding("model files", "warning", "no model is set, or it is not on this machine", "add -- MODEL")
    try:
        record = model_files.find_record(folder)
    except ModelLoadError as error:
        return Finding("model files", "problem", str(error), "correct that file, or download the model again")
    if record is None:
        advice = (
            f"in its folder, run shasum -a 256 *.safetensors *.json > {model_files.MANIFEST}; copy that file to the "
            f"other machines, and run there: pippin verify {folder.name}"
        )
        return Finding("model files", "warning", f"{folder}: no published digests to compare with", advice)
    text = f"fingerprint {fingerprint(record)} of {len(record.digests)} files, by {record.basis}"
    is_compared = model_files.is_known(folder, record)
    advice = "the other machines must report the same"
    if not is_compared:
        return Finding("model files", "warning", f"{text}; files not verified", f"run pippin verify {folder}; {advice}")
    return Finding("model files", "ok", f"{text}; {advice}")


def fingerprint(record: model_files.Record) -> str:
    """Return a digest of the record's files and digests, independent of their order."""
    lines = "".join(f"{record.digests[name]}  {name}\n" for name in sorted(record.digests))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


# --- RDMA over Thunderbolt 5


def check_rdma(facts: RankFacts, group: Hostfile, own: Sequence[Host]) -> Iterator[Finding]:
    """Check RDMA on this machine."""
    if facts.platform != "darwin":
        yield Finding("RDMA", "problem", "jaccl needs Macs with Thunderbolt 5", "set backend to ring in the hostfile")
        return
    version = facts.macos()
    if version and version < LEAST_MACOS:
        text = f"macOS {'.'.join(map(str, version))}; {'.'.join(map(str, LEAST_MACOS))} or newer is required"
        yield Finding("RDMA", "problem", text, "update macOS on every machine, to the same version")
        return
    yield _check_devices(facts, own)
    yield _check_bridge(facts)


def _check_devices(facts: RankFacts, own: Sequence[Host]) -> Finding:
    enable = "in Recovery's Terminal, run rdma_ctl enable; then restart"
    listed = facts.output(["ibv_devices"])
    devices = read_devices(listed or "")
    if not devices:
        text = "ibv_devices is missing" if listed is None else "ibv_devices lists no device"
        return Finding("RDMA", "problem", f"{text}: RDMA is not enabled, or the machine has no Thunderbolt 5", enable)
    wanted = sorted({device for host in own for device in host.rdma if device is not None})
    lacking = [device for device in wanted if device not in devices]
    if lacking:
        text = f"the hostfile names {', '.join(lacking)}; ibv_devices lists {', '.join(devices)}"
        return Finding("RDMA", "problem", text, "correct the hostfile; mlx.distributed_config writes one")
    states = read_states(facts.output(["ibv_devinfo"]) or "")
    down = [device for device in wanted if states.get(device) != "PORT_ACTIVE"]
    if down:
        text = ", ".join(f"{device} is {states.get(device, 'unknown')}" for device in down)
        advice = "check the cable, the port (on a Mac Studio not the one beside Ethernet), and RDMA on the peer"
        return Finding("RDMA", "problem", f"{text}, not PORT_ACTIVE", advice)
    return Finding("RDMA", "ok", f"{', '.join(wanted or devices)} {'are active' if wanted else 'found'}")


def _check_bridge(facts: RankFacts) -> Finding:
    """Check that the bridge is off: it takes the ports."""
    state = read_bridge(facts.output(["networksetup", "-listallnetworkservices"]) or "")
    if state == "on":
        advice = f'sudo networksetup -setnetworkserviceenabled "{_BRIDGE}" off'
        return Finding(_BRIDGE, "problem", "is enabled, which blocks the ports for RDMA", advice)
    return Finding(_BRIDGE, "ok", "is disabled" if state == "off" else "does not exist")


def read_devices(text: str) -> list[str]:
    """Return the devices of `ibv_devices`, which prints a name and a GUID per line."""
    return _DEVICE.findall(text)


def read_states(text: str) -> dict[str, str]:
    """Return the state of each device's first port, as printed by `ibv_devinfo`."""
    found: dict[str, str] = {}
    device = ""
    for name, state in _STATE.findall(text):
        if name:
            device = name
        elif device:
            found.setdefault(device, state)
    return found


def read_bridge(text: str) -> str:
    """Return `on`, `off`, or empty if there is none; disabled services begin with an asterisk."""
    for line in text.splitlines():
        if line.lstrip("*").strip() == _BRIDGE:
            return "off" if line.startswith("*") else "on"
    return ""


def _output(command: Sequence[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
