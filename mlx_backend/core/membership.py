"""Membership: a process's rank, its group, and the group's way of sharing a model."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_backend.api.interface import Parallel


@dataclass(frozen=True, slots=True)
class Membership:
    """`addresses`: host:port of every rank, in order, where the ranks' collectives connect to each other."""

    rank: int
    addresses: tuple[str, ...]
    parallel: Parallel
    split: tuple[int, ...] | None = None
    """Layers of each of a pipeline's ranks; None: even."""
    rdma: tuple[tuple[str | None, ...], ...] = ()
    """By rank and peer: the RDMA device that leads there, for MLX's jaccl. Empty: MLX's ring, over TCP."""
    num_here: int = 1
    """Ranks on this one's machine, which share its memory."""
    further: tuple[tuple[str, ...], ...] = ()
    """By rank: further addresses of MLX's ring, over other cables; the same number for each rank."""

    @property
    def count(self) -> int:
        return len(self.addresses)

    def addresses_of(self, rank: int) -> tuple[str, ...]:
        """Return every host:port at which a rank takes a connection."""
        return (self.addresses[rank], *(self.further[rank] if self.further else ()))
