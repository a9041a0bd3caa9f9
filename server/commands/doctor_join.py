"""Check that a group's ports are free on this machine, and that rank 0's port can be reached from it.

For `pippin doctor --hostfile`. Connections are opened and closed. From rank 0's port, the first bytes are read, which
identify a rank 0; rank 0 logs an abandoned connection.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Collection, Iterator

from mlx_backend.api.interface import RankHosts
from server.commands.finding import Finding

KNOCK_S = 3.0
WAITS = "rank 0 is waiting there"
NOTHING = "it is reachable; rank 0 is not waiting there yet"
SOMETHING_ELSE = "a program other than a waiting rank 0 answers there"
_OTHER_PORT = "set another --ranks-port on rank 0, and pass it to `pippin join`"

Ask = Callable[[str, int], str]


def check_ports(free: Ask, knock: Ask, hosts: RankHosts, here: Collection[int]) -> Iterator[Finding]:
    """Check the ports that a group needs. `here`: ranks of this machine.

    `free` returns why this machine cannot listen at an address, or an empty text. `knock` returns what answers there.
    """
    if 0 in here:
        yield _check_free("join port", free, hosts.listen, _OTHER_PORT)
    else:
        yield _check_join_port(knock, hosts.listen)
    for rank in sorted(here):
        host = hosts.hosts[rank]
        if rank == 0 or not host.rdma:  # over RDMA the coordinator alone listens
            for address in (host.address, *host.further):
                yield _check_free("MLX's port", free, address, "set another port for this address in the hostfile")


def _check_free(what: str, free: Ask, address: str, instead: str) -> Finding:
    problem = free(*split(address))
    if problem:
        return Finding(what, "problem", f"{address}: {problem}", f"stop the program that listens there, or {instead}")
    return Finding(what, "ok", f"{address} is free")


def _check_join_port(knock: Ask, address: str) -> Finding:
    found = knock(*split(address))
    if found in (WAITS, NOTHING):
        return Finding("join port", "ok", f"{address}: {found}")
    if found == SOMETHING_ELSE:
        advice = f"stop it, or {_OTHER_PORT}"
    else:
        advice = "check that rank 0's machine is on, allow the port in its firewall, and check the file's first address"
    return Finding("join port", "problem", f"{address}: {found}", advice)


def split(address: str) -> tuple[str, int]:
    """Return host and port of an address written by `rank_hosts`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def why_not_free(host: str, port: int) -> str:
    """Return why the address cannot be listened on now; empty if it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        return "it is in use" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0)
    return ""


def who_waits(host: str, port: int) -> str:
    """Return what answers at rank 0's port, or why there is no answer."""
    from mlx_backend.follow import MAGIC  # late: not needed for one machine

    try:
        with socket.create_connection((host, port), timeout=KNOCK_S) as asked:
            asked.settimeout(KNOCK_S)
            return WAITS if _first(asked, len(MAGIC)) == MAGIC else SOMETHING_ELSE
    except ConnectionRefusedError:
        return NOTHING
    except TimeoutError:
        return f"no answer within {KNOCK_S:.0f} s"
    except OSError as error:
        return error.strerror or str(error)


def _first(asked: socket.socket, num_bytes: int) -> bytes:
    found = b""
    try:
        while len(found) < num_bytes and (part := asked.recv(num_bytes - len(found))):
            found += part
    except OSError:  # sends nothing, as servers of other protocols do
        pass
    return found
