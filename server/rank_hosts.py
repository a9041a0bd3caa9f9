"""Addresses of the ranks of a served model, from the file of `serve --hostfile`; checked before the server listens."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mlx_backend.api.interface import EngineConfig, RankHost, RankHosts
from server import hostfile, pocket
from server.config import Config, ConfigError
from server.hostfile import Address, Host, Hostfile, HostfileError

RESOLVE_S = 5.0
"""Limit, because name servers may take minutes."""
Resolve = Callable[[str], str | None]
"""Returns the IPv4 address of a name; None if there is none within RESOLVE_S."""


def placed(config: Config, told: EngineConfig) -> EngineConfig:
    """Return the engine's configuration with the machines of the hostfile, if one is named. Raises ConfigError."""
    if config.ranks.hostfile is None:
        return told
    try:
        group = hostfile.read(Path(config.ranks.hostfile).expanduser())
        if config.ranks.count not in (1, group.size):
            raise HostfileError(
                f"ranks.count {config.ranks.count}: the hostfile {config.ranks.hostfile} lists {group.size} hosts; "
                "leave it out"
            )
        hosts = hosts_of(group, config.ranks.port, _model(config.model), resolve)
        _check_key(config.ranks.key)
    except HostfileError as error:
        raise ConfigError(str(error)) from None
    return replace(told, ranks=replace(told.ranks, count=group.size), hosts=hosts)


def hosts_of(group: Hostfile, port: int, model: str, resolve: Resolve) -> RankHosts:
    """Return the address of every rank. Rank 0 waits at `port`; without ports in the file, MLX uses the next one.

    Raises HostfileError.
    """
    hosts = tuple(_host(host, port + 1, group.backend, resolve) for host in group.hosts)
    listen = _written(hosts[0].ips[0], port)
    _check_once(hosts, listen)
    if group.backend == "ring":
        _check_alike(hosts)
    return RankHosts(model=model, listen=listen, hosts=hosts)


def _host(host: Host, port: int, backend: hostfile.Backend, resolve: Resolve) -> RankHost:
    """Return a rank's machine with numeric addresses, as MLX and the comparison of addresses need them.

    MLX's ring connects over each address; jaccl uses the first one of rank 0 to find the others.
    """
    where, is_ring = f"host {host.rank} ({host.name})", backend == "ring"
    named = host.addresses or (Address(host.name.rpartition("@")[2]),)
    found = [(_ip(address.host) or resolve(address.host), address) for address in named]
    unknown = [address.host for ip, address in found if ip is None]
    if unknown and (is_ring or len(unknown) == len(found)):
        raise HostfileError(f"{where}: no name server knows an IPv4 address of {unknown[0]}; write the address in ips")
    known = [(ip, address) for ip, address in found if ip is not None]
    for ip, _ in known if is_ring else known[:1] if host.rank == 0 else ():
        if ":" in ip:
            takes = "MLX's ring takes IPv4 addresses" if is_ring else "MLX's jaccl takes an IPv4 address of rank 0"
            raise HostfileError(f"{where}: {takes} alone, not {ip}; write its IPv4 address in ips instead")
    address, *further = [_written(ip, address.port or port) for ip, address in known]
    return RankHost(
        name=host.name,
        ips=tuple(ip for ip, _ in known),
        address=address,
        further=tuple(further) if is_ring else (),
        rdma=() if is_ring else host.rdma,
    )


def _check_once(hosts: Sequence[RankHost], listen: str) -> None:
    """Raise HostfileError if two ranks listen at one address: several names may mean the same one."""
    seen = {listen: "where rank 0 waits for the others; set another ranks.port"}
    for rank, host in enumerate(hosts):
        for address in (host.address, *host.further):
            if address in seen:
                raise HostfileError(f"host {rank} ({host.name}) has {address} for MLX's messages, {seen[address]}")
            seen[address] = f"as host {rank} has; list each address once, or give them ports that differ"


def _check_alike(hosts: Sequence[RankHost]) -> None:
    """Raise HostfileError if the numbers of addresses differ: MLX's ring has one connection over each."""
    count = len(hosts[0].ips)
    for rank, host in enumerate(hosts):
        if len(host.ips) != count:
            own = f"{len(host.ips)} address{'es' if len(host.ips) > 1 else ''} in ips"
            raise HostfileError(
                f"host {rank} ({host.name}) has {own}, and host 0 has {count}; MLX's ring connects over each: list as "
                "many for every host"
            )


def _check_key(given: str | None) -> None:
    """Raise HostfileError if the engine could not read the key."""
    if given is None:
        raise HostfileError("ranks.key: a hostfile needs it; name the file that holds the key, as --key @FILE")
    from mlx_backend.follow import read_key  # late: only needed with a hostfile

    try:
        read_key(given if given != "@-" else "")
    except ValueError as error:
        raise HostfileError(f"ranks.key: {error}") from None


def resolve(name: str) -> str | None:
    """Return the IPv4 address of a name from the system; None if it takes longer than RESOLVE_S or fails."""
    found: list[str] = []

    def ask() -> None:
        try:
            rows = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
        except OSError:
            return
        found.extend(str(row[4][0]) for row in rows)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(RESOLVE_S)
    return found[0] if found else None


def _ip(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def _written(host: str, port: int) -> str:
    return str(Address(host, port))


def _model(name: str | None) -> str:
    """Return the name by which the other machines find the model."""
    if pocket.is_meant(name):
        return pocket.MODEL_ID
    path = Path(name or "").expanduser()
    return str(path.absolute()) if path.is_dir() else name or ""
