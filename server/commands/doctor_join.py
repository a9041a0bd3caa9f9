"""The ports of a group of ranks: that they are free on this machine, and that rank 0's can be reached from it.

For `pippin doctor --hostfile`. Connections are made and closed. Of what answers at rank 0's port, the first bytes are
read, which say whether it is a rank 0; that one logs a connection that was given up.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Collection, Iterator

from mlx_backend.api.interface import RankHosts
from server.commands.finding import Finding

KNOCK_S = 3.0
WAITS = "rank 0 waits there"
NOTHING = "it can be reached, and nothing waits there yet"
SOMETHING_ELSE = "something else than a Pippin that waits for ranks answers there"
_OTHER_PORT = "set another --ranks-port of rank 0, and give that to `pippin join`"

Ask = Callable[[str, int], str]


def check_ports(free: Ask, knock: Ask, hosts: RankHosts, here: Collection[int]) -> Iterator[Finding]:
    """Look at the ports that a group needs. `here`: ranks of this machine.

    `free` returns why this machine cannot listen somewhere, nothing where it can. `knock` returns what answers.
    """
    if 0 in here:
        yield _check_free("join port", free, hosts.listen, _OTHER_PORT)
    else:
        yield _check_join_port(knock, hosts.listen)
    for rank in sorted(here):
        host = hosts.hosts[rank]
        if rank == 0 or not host.rdma:  # over RDMA the coordinator alone listens
            for address in (host.address, *host.further):
                yield _check_free("MLX's port", free, address, "have the hostfile give this address another port")


def _check_free(what: str, free: Ask, address: str, instead: str) -> Finding:
    problem = free(*split(address))
    if problem:
        return Finding(what, "problem", f"{address}: {problem}", f"end what listens there, or {instead}")
    return Finding(what, "ok", f"{address} is free")


def _check_join_port(knock: Ask, address: str) -> Finding:
    found = knock(*split(address))
    if found in (WAITS, NOTHING):
        return Finding("join port", "ok", f"{address}: {found}")
    if found == SOMETHING_ELSE:
        advice = f"end it, or {_OTHER_PORT}"
    else:
        advice = "is rank 0's machine on? allow the port in its firewall, and check the first address in the file"
    return Finding("join port", "problem", f"{address}: {found}", advice)


def split(address: str) -> tuple[str, int]:
    """Return host and port of an address that `rank_hosts` has written."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def why_not_free(host: str, port: int) -> str:
    """Return why nothing can listen there now, nothing where it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        return "it is taken" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0)
    return ""


def who_waits(host: str, port: int) -> str:
    """Return what answers at rank 0's port, or why nothing does."""
    from mlx_backend.follow import MAGIC  # late: the doctor of one machine needs none of it

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
    except OSError:  # it says nothing, as servers of other protocols do
        pass
    return found
