"""The machines of a model's ranks, in the engine's terms: read from a hostfile by the server. No logic."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RankHost:
    """The machine of one rank."""

    name: str
    ips: tuple[str, ...]
    """IP addresses from which its process may join."""
    address: str
    """host:port of its collectives."""
    further: tuple[str, ...] = ()
    """host:port of further connections of MLX's ring, over other cables; the same number for each rank."""
    rdma: tuple[str | None, ...] = ()
    """RDMA device that leads to each peer, by rank. Empty: TCP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankHosts:
    """The machines of all ranks, rank 0 first."""

    model: str
    """Name by which every machine finds the model: a folder's path, or a hub id."""
    listen: str
    """host:port at which rank 0 waits for the others."""
    hosts: tuple[RankHost, ...]
