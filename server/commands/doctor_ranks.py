"""What of several machines would keep them from serving one model together: `pippin doctor --hostfile FILE`.

Each machine can tell only of itself, and of whether the others answer: the command is run on each. Connections are
made and closed; nothing is sent, loaded or changed. What is read of macOS is written from Apple's TN3205 and
networksetup(8); not run on a Mac.
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
"""A host that has not answered by then counts as one that does not."""
LONGEST_S = 5.0
"""With what it takes to find a host by its name."""
LEAST_MACOS = (26, 2)
"""The first with RDMA over Thunderbolt."""
PORT = RanksConfig().port
_BRIDGE = "Thunderbolt Bridge"
_DEVICE = re.compile(r"^\s*(\w+)\s+[0-9a-fA-F]{16}\s*$", re.MULTILINE)
_STATE = re.compile(r"hca_id:\s*(\w+)|state:\s*(\w+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFacts:
    """What is asked of the machine and of the network."""

    platform: str = sys.platform
    macos: Callable[[], tuple[int, ...]] = lambda: macos_version()[0]
    version_of: Callable[[str], str | None] = lambda name: _version_of(name)
    is_here: Callable[[str], bool] = lambda host: _is_here(host)
    reach: Callable[[str, int], str] = lambda host, port: _reach(host, port)
    """Empty: something answers, or says that nothing listens. Else why nothing does."""
    free: Callable[[str, int], str] = why_not_free
    """Empty: this machine can listen there. Else why it cannot."""
    knock: Callable[[str, int], str] = who_waits
    """What answers where rank 0 waits for the others."""
    resolve: rank_hosts.Resolve = rank_hosts.resolve
    output: Callable[[Sequence[str]], str | None] = lambda command: _output(command)
    """What a command prints; None where there is no such command or it fails."""


def examine(facts: RankFacts, file: Path, model: Path | None, port: int = PORT) -> Iterator[Finding]:
    """Everything, in the order in which it would matter. `model`: its folder, where it is known; `port`: ranks.port."""
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
        advice = "run it on the machines of the file, or correct the addresses there"
        return Finding("this machine", "warning", "is none of the hostfile's", advice)
    return Finding("this machine", "ok", f"is rank {' and '.join(str(host.rank) for host in own)}")


def _names(host: Host) -> list[str]:
    """What it can be reached by: its addresses, or else its name."""
    return [address.host for address in host.addresses] or [host.name.rpartition("@")[2]]


# --- the network


def _check_reach(facts: RankFacts, hosts: Sequence[Host], port: int) -> Iterator[Finding]:
    """Try the ports of MLX's messages; `port` where the file gives none."""
    places = [(host, name, _port(host, name) or port) for host in hosts for name in _names(host)]
    answers = _at_once(facts.reach, [(name, port) for _, name, port in places], f"no answer within {LONGEST_S:.0f} s")
    for (host, name, port), problem in zip(places, answers, strict=True):
        what = f"rank {host.rank} ({host.name})"
        if not problem:
            yield Finding(what, "ok", f"{name} answers")
            continue
        advice = "is it on and in the same network? check the cable, the firewall, and the address in the file"
        yield Finding(what, "problem", f"{name} port {port}: {problem}", advice)


def _at_once(ask: Callable[..., T], asked: Sequence[tuple[Any, ...]], default: T) -> list[T]:
    """All answers, `default` for each that takes longer than LONGEST_S: name servers may take minutes."""
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
    """Whether a socket can be bound to it, as to addresses of this machine alone."""
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
        return Finding("versions", "problem", text, "run scripts/install, with the same Pippin on every machine")
    return Finding("versions", "ok", f"{text}; the other machines must print the same, or rank 0 refuses them")


def _check_model(folder: Path | None) -> Finding:
    """The digest of all published digests: no weight is read."""
    if folder is None:
        return Finding("model files", "warning", "no model is named, or it is not here", "name it: -- MODEL")
    try:
        record = model_files.find_record(folder)
    except ModelLoadError as error:
        return Finding("model files", "problem", str(error), "correct that file, or fetch the model again")
    if record is None:
        advice = (
            f"in its folder: shasum -a 256 *.safetensors *.json > {model_files.MANIFEST}; copy that file to the other "
            f"machines, and there: pippin verify {folder.name}"
        )
        return Finding("model files", "warning", f"{folder}: no record says what they should be", advice)
    text = f"fingerprint {fingerprint(record)} of {len(record.digests)} files, by {record.basis}"
    is_compared = model_files.is_known(folder, record)
    advice = "the other machines must print the same"
    if not is_compared:
        return Finding("model files", "warning", f"{text}; not compared", f"pippin verify {folder}; and {advice}")
    return Finding("model files", "ok", f"{text}; {advice}")


def fingerprint(record: model_files.Record) -> str:
    """The same for the same files, whatever order they are named in."""
    lines = "".join(f"{record.digests[name]}  {name}\n" for name in sorted(record.digests))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


# --- RDMA over Thunderbolt 5


def check_rdma(facts: RankFacts, group: Hostfile, own: Sequence[Host]) -> Iterator[Finding]:
    """What this machine says of it."""
    if facts.platform != "darwin":
        yield Finding("RDMA", "problem", "jaccl needs Macs with Thunderbolt 5", "set backend to ring in the hostfile")
        return
    version = facts.macos()
    if version and version < LEAST_MACOS:
        text = f"macOS {'.'.join(map(str, version))}; {'.'.join(map(str, LEAST_MACOS))} or newer is needed"
        yield Finding("RDMA", "problem", text, "update macOS on every machine, to the same version")
        return
    yield _check_devices(facts, own)
    yield _check_bridge(facts)


def _check_devices(facts: RankFacts, own: Sequence[Host]) -> Finding:
    enable = "in Recovery's Terminal: rdma_ctl enable; then restart"
    listed = facts.output(["ibv_devices"])
    devices = read_devices(listed or "")
    if not devices:
        text = "there is no ibv_devices" if listed is None else "ibv_devices lists no device"
        return Finding("RDMA", "problem", f"{text}: it is not enabled, or there is no Thunderbolt 5", enable)
    wanted = sorted({device for host in own for device in host.rdma if device is not None})
    lacking = [device for device in wanted if device not in devices]
    if lacking:
        text = f"the hostfile names {', '.join(lacking)}; ibv_devices lists {', '.join(devices)}"
        return Finding("RDMA", "problem", text, "correct the file; mlx.distributed_config writes one")
    states = read_states(facts.output(["ibv_devinfo"]) or "")
    down = [device for device in wanted if states.get(device) != "PORT_ACTIVE"]
    if down:
        text = ", ".join(f"{device} is {states.get(device, 'unknown')}" for device in down)
        advice = "check the cable, the port (on a Mac Studio not the one beside Ethernet), and RDMA on the peer"
        return Finding("RDMA", "problem", f"{text}, not PORT_ACTIVE", advice)
    return Finding("RDMA", "ok", f"{', '.join(wanted or devices)} {'are active' if wanted else 'are there'}")


def _check_bridge(facts: RankFacts) -> Finding:
    """The bridge takes the ports for itself."""
    state = read_bridge(facts.output(["networksetup", "-listallnetworkservices"]) or "")
    if state == "on":
        advice = f'sudo networksetup -setnetworkserviceenabled "{_BRIDGE}" off'
        return Finding(_BRIDGE, "problem", "is enabled, which keeps RDMA from the ports", advice)
    return Finding(_BRIDGE, "ok", "is disabled" if state == "off" else "is not there")


def read_devices(text: str) -> list[str]:
    """The devices of `ibv_devices`: a name and a GUID a line."""
    return _DEVICE.findall(text)


def read_states(text: str) -> dict[str, str]:
    """The state of each device's first port, as `ibv_devinfo` prints it."""
    found: dict[str, str] = {}
    device = ""
    for name, state in _STATE.findall(text):
        if name:
            device = name
        elif device:
            found.setdefault(device, state)
    return found


def read_bridge(text: str) -> str:
    """`on`, `off`, or nothing where there is none; disabled services begin with an asterisk."""
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
