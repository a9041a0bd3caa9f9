"""Addresses host:port of ranks: parsed, bound, and tested before MLX uses them. No MLX."""

from __future__ import annotations

import contextlib
import os
import socket

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.core.membership import Membership

LOOPBACK = "127.0.0.1"
REACH_S = 5.0
"""Time without an answer after which a rank's collectives address counts as unreachable."""


def parse(address: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[host]:port`. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    is_port = port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536
    if not colon or not host or not is_port or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise ValueError(f"{address!r} is no HOST:PORT, such as 192.168.1.10:7400")
    return host.strip("[]"), int(port)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises OSError with the address and the reason."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}") from error


def free_addresses(count: int) -> tuple[str, ...]:
    """Return this many addresses of this machine at which nothing listens now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((LOOPBACK, 0))) for _ in range(count)]
        return tuple(f"{LOOPBACK}:{each.getsockname()[1]}" for each in sockets)


class Tryout:
    """Tests the addresses of the group's collectives: MLX waits forever, without a message, for one that fails.

    All ranks `open`, then all `reach`, then all `close`, then MLX connects: it must not reach one of these sockets.
    """

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._sockets: list[socket.socket] = []

    def open(self) -> None:
        """Listen on MLX's addresses. Raises ModelLoadError."""
        own = self._membership
        if own.rdma and own.rank > 0:
            return  # only the coordinator, rank 0, listens
        try:
            for address in own.addresses_of(own.rank):
                self._sockets.append(listen(*parse(address)))
        except (OSError, ValueError) as error:
            raise ModelLoadError(
                f"ranks: rank {own.rank} {error}; free the port, or have the hostfile give this machine's address and "
                "another port"
            ) from error

    def reach(self) -> None:
        """Connect to the rank that MLX will connect to. Raises ModelLoadError."""
        own = self._membership
        peer = 0 if own.rdma else (own.rank + 1) % own.count
        if peer == own.rank:
            return
        for address in own.addresses_of(peer):
            try:
                socket.create_connection(parse(address), REACH_S).close()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise ModelLoadError(
                    f"ranks: rank {own.rank} cannot reach rank {peer} at {address}: {reason}; check the cable, the "
                    "firewall of that machine, and the address in the hostfile"
                ) from error

    def close(self) -> None:
        """Free the addresses for MLX."""
        for each in self._sockets:
            each.close()
        self._sockets.clear()
