"""Seats: the rank of a process that has proved the key, or the reason of its refusal. Pure; no sockets, no MLX."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class Refused(Exception):
    """A process may not join. One line: the reason, and the remedy."""


@dataclass(frozen=True, slots=True)
class Seat:
    """The place of one rank. `ips`: addresses from which its process may join."""

    rank: int
    name: str
    ips: frozenset[str]


class Seats:
    """The seats of ranks 1 and above. Not safe for threads."""

    def __init__(self, seats: Sequence[Seat], versions: Mapping[str, str]) -> None:
        self._seats, self._versions = {seat.rank: seat for seat in seats}, versions
        self._taken: set[int] = set()

    @property
    def free(self) -> tuple[Seat, ...]:
        """Free seats, by rank."""
        return tuple(seat for rank, seat in sorted(self._seats.items()) if rank not in self._taken)

    @property
    def taken(self) -> frozenset[int]:
        return frozenset(self._taken)

    def take(self, hello: Mapping[str, Any], ip: str) -> int:
        """Return the rank of a process that sends `hello` from this address. Raises Refused."""
        wrong = version_difference(self._versions, hello.get("versions"))
        if wrong is not None:
            raise Refused(wrong)
        rank = self._asked(hello.get("rank")) if hello.get("rank") is not None else self._found(plain(ip))
        if rank in self._taken:
            seat = self._seats[rank]
            raise Refused(f"rank {rank} ({seat.name}) has joined already; end the other process, or join from its host")
        self._taken.add(rank)
        return rank

    def _asked(self, rank: Any) -> int:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank not in self._seats:
            ranks = f"1 to {max(self._seats)}" if len(self._seats) > 1 else "1"
            raise Refused(f"there is no rank {str(rank)[:20]} to join; the group's are {ranks}, beside rank 0")
        return rank

    def _found(self, ip: str) -> int:
        here = [rank for rank, seat in sorted(self._seats.items()) if ip in seat.ips]
        if not here:
            raise Refused(f"{ip} is no address of a rank in the hostfile; correct the file, or join with --rank N")
        return next((rank for rank in here if rank not in self._taken), here[0])


def version_difference(own: Mapping[str, str], theirs: object) -> str | None:
    """Return the version differences of another process, in words; None if there are none."""
    if not isinstance(theirs, Mapping):
        return "it does not say its versions; install the same Pippin on every machine"
    differing = [name for name in own if theirs.get(name) != own[name]]
    if not differing:
        return None
    has = ", ".join(f"{name} {str(theirs.get(name, 'none'))[:40]}" for name in differing)
    needs = ", ".join(f"{name} {own[name]}" for name in differing)
    return f"it has {has}, and rank 0 has {needs}; install the same on every machine"


def plain(ip: str) -> str:
    """Return one text for all spellings of an IP address; an IPv4 address inside IPv6 as IPv4."""
    try:
        address = ipaddress.ip_address(ip.partition("%")[0])
    except ValueError:
        return ip
    inner = getattr(address, "ipv4_mapped", None)
    return str(inner or address)
