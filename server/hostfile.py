"""MLX's hostfile, which lists the machines of a group of ranks in rank order: reading and checks only.

Accepts the three forms that MLX itself writes and reads:

    {"backend": "ring", "envs": [], "hosts": [{"ssh": "a", "ips": ["192.168.1.10"], "rdma": []}, …]}
    [{"ssh": "a", "ips": ["192.168.1.10"], "rdma": [null, "rdma_en5"]}, …]
    [["192.168.1.10:7100"], ["192.168.1.11:7100"]]
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Backend = Literal["ring", "jaccl"]

MOST_HOSTS = 16
_MOST_BYTES = 1 << 20
_BACKENDS: dict[str, Backend] = {"ring": "ring", "jaccl": "jaccl", "jaccl-ring": "jaccl"}
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")


class HostfileError(ValueError):
    """The hostfile is invalid; one line states the problem and the remedy."""


@dataclass(frozen=True, slots=True)
class Address:
    """Listening address of a rank; port 0 if the file has none."""

    host: str
    port: int = 0

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host


@dataclass(frozen=True, slots=True)
class Host:
    """The machine of one rank."""

    rank: int
    name: str
    """ssh name, or its first address."""
    addresses: tuple[Address, ...]
    rdma: tuple[str | None, ...] = ()
    """RDMA device to each peer, by rank: the first of several; None for the rank itself."""


@dataclass(frozen=True, slots=True)
class Hostfile:
    """Content of a hostfile."""

    hosts: tuple[Host, ...]
    backend: Backend

    @property
    def size(self) -> int:
        return len(self.hosts)


def read(file: Path) -> Hostfile:
    """Read and check a file. Raises HostfileError."""
    try:
        with file.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise HostfileError(f"hostfile {file}: {error.strerror or error}; name a file that can be read") from None
    if len(content) > _MOST_BYTES:
        raise HostfileError(f"hostfile {file}: larger than {_MOST_BYTES:,} bytes; it lists {MOST_HOSTS} hosts at most")
    try:
        return parse(content)
    except HostfileError as error:
        raise HostfileError(f"hostfile {file}: {error}") from None


def parse(content: bytes) -> Hostfile:
    """Check the content of a file. Raises HostfileError."""
    try:
        document = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise HostfileError("it is not UTF-8; write it as JSON") from None
    except json.JSONDecodeError as error:
        raise HostfileError(f"no JSON in line {error.lineno}, column {error.colno}: {error.msg}; correct it") from None
    except (RecursionError, ValueError):
        raise HostfileError("its JSON cannot be read; write a list of hosts") from None
    backend, rows = _parts(document)
    if len(rows) < 2:
        what = f"it lists {len(rows)} host{'s' if len(rows) != 1 else ''}"
        raise HostfileError(f"{what}; list one for each rank, at least 2")
    if len(rows) > MOST_HOSTS:
        raise HostfileError(f"it lists {len(rows)} hosts; {MOST_HOSTS} at most can hold one model")
    hosts = tuple(_host(rank, row, len(rows)) for rank, row in enumerate(rows))
    _check_once(hosts)
    return Hostfile(hosts, _backend(backend, hosts))


def _parts(document: Any) -> tuple[str, list[Any]]:
    """Return (the named backend, the rows)."""
    if isinstance(document, dict):
        if not isinstance(document.get("hosts"), list):
            raise HostfileError("it has no list `hosts`; write one, with a host for each rank")
        backend = document.get("backend", "")
        if backend and not (isinstance(backend, str) and backend in _BACKENDS):
            raise HostfileError(f"backend {_shown(backend)}: one of {', '.join(_BACKENDS)}")
        return backend or "", document["hosts"]
    if isinstance(document, list):
        return "", document
    raise HostfileError(f"it holds {_shown(document)}; write a list of hosts")


def _host(rank: int, row: Any, size: int) -> Host:
    where = f"host {rank}"
    if isinstance(row, list):
        addresses = tuple(_address(where, each, wants_port=True) for each in row)
        if not addresses:
            raise HostfileError(f"{where} has no address; give it one, such as 192.168.1.10:7100")
        return Host(rank, addresses[0].host, addresses)
    if not isinstance(row, dict):
        raise HostfileError(f'{where} is {_shown(row)}; write {{"ssh": NAME, "ips": [ADDRESS]}}')
    name, ips = row.get("ssh"), row.get("ips", [])
    if not isinstance(name, str) or not _is_ssh_name(name):
        raise HostfileError(f"{where}: ssh {_shown(name)} is no name of a host; name it as ssh does")
    if not isinstance(ips, list):
        raise HostfileError(f"{where} ({name}): ips is {_shown(ips)}; write a list of addresses")
    addresses = tuple(_address(f"{where} ({name})", each, wants_port=False) for each in ips)
    return Host(rank, name, addresses, _rdma(f"{where} ({name})", row.get("rdma", []), rank, size))


def _address(where: str, text: Any, *, wants_port: bool) -> Address:
    example = "192.168.1.10:7100" if wants_port else "192.168.1.10"
    if not isinstance(text, str):
        raise HostfileError(f"{where}: address {_shown(text)} is no text; write one such as {example}")
    host, port = _halves(text)
    if not _is_host(host):
        raise HostfileError(f"{where}: {_shown(text)} is no address; write one such as {example}")
    if port is None:
        if wants_port:
            raise HostfileError(f"{where}: {text} has no port; write one such as {example}")
        return Address(host)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise HostfileError(f"{where}: port {_shown(port)} of {host}: a whole number from 1 to 65535")
    return Address(host, int(port))


def _halves(text: str) -> tuple[str, str | None]:
    """Split host and port: `a`, `a:1`, `::1`, `[::1]:1`."""
    if text.startswith("["):
        host, closing, rest = text[1:].partition("]")
        is_whole = bool(closing) and (not rest or rest.startswith(":"))
        return (host if is_whole else "", rest[1:] if rest else None)
    if text.count(":") > 1:
        return text, None
    host, colon, port = text.partition(":")
    return host, port if colon else None


def _is_ssh_name(text: str) -> bool:
    user, at, host = text.rpartition("@")
    return _is_host(host) and (not at or _NAME.fullmatch(user) is not None)


def _is_host(text: str) -> bool:
    if not text.isascii() or not text.isprintable() or " " in text:
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        is_like_ipv4 = re.fullmatch(r"[0-9.]+", text) is not None
        return len(text) <= 253 and not is_like_ipv4 and _NAME.fullmatch(text) is not None
    return True


def _alike(host: str) -> str:
    """Return one text for all spellings of an address."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.lower().rstrip(".")


def _rdma(where: str, devices: Any, rank: int, size: int) -> tuple[str | None, ...]:
    if devices in ([], None):
        return ()
    if not isinstance(devices, list) or len(devices) != size:
        given = f"{len(devices)} devices" if isinstance(devices, list) else _shown(devices)
        raise HostfileError(f"{where}: rdma has {given}; write a device for each of {size} ranks, null for its own")
    found = tuple(_device(where, each) for each in devices)
    if found[rank] is not None:
        raise HostfileError(f"{where}: rdma names {found[rank]} for the rank itself; write null in place {rank}")
    if size > 1 and all(device is None for device in found):
        raise HostfileError(f"{where}: rdma names no device at all; leave it out, or see `ibv_devices` for their names")
    return found


def _device(where: str, device: Any) -> str | None:
    names = device if isinstance(device, list) else [device]
    if device is not None and not (names and all(isinstance(name, str) and name for name in names)):
        raise HostfileError(f"{where}: rdma device {_shown(device)}; write a name such as rdma_en5, or null")
    return names[0] if device is not None else None


def _check_once(hosts: Sequence[Host]) -> None:
    """Raise HostfileError for a repeated name or address; ranks on one machine, as in tests, differ by port."""
    seen: dict[tuple[str, int], int] = {}
    for host in hosts:
        places = {(_alike(address.host), address.port): str(address) for address in host.addresses}
        if not any(address.port for address in host.addresses):
            places[_alike(host.name), 0] = host.name
        for place, shown in places.items():
            if place in seen:
                raise HostfileError(f"hosts {seen[place]} and {host.rank} are both {shown}; list each host once")
        seen.update(dict.fromkeys(places, host.rank))


def _backend(named: str, hosts: Sequence[Host]) -> Backend:
    without = next((host for host in hosts if not host.rdma), None)
    has_any = any(host.rdma for host in hosts)
    backend = _BACKENDS[named] if named else "ring" if without else "jaccl"
    if without is not None and backend == "jaccl":
        raise HostfileError(f"host {without.rank} ({without.name}) has no rdma, which jaccl needs; or name the ring")
    if without is not None and has_any and not named:
        raise HostfileError(f"host {without.rank} ({without.name}) has no rdma, and others have; all need it, or none")
    lacking = next((host for host in hosts if not host.addresses), None)
    if lacking is not None and backend == "ring":
        what = f"host {lacking.rank} ({lacking.name}) has no address in ips"
        raise HostfileError(f"{what}, which the ring needs; write one such as 192.168.1.10")
    return backend


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=True)
    except RecursionError:
        text = "something deep"
    return text if len(text) <= 60 else f"{text[:57]}…"
