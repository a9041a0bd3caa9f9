"""Membership: which rank a process is, of which group, and how the group shares a model."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_backend.api.interface import Parallel


@dataclass(frozen=True, slots=True)
class Membership:
    """`addresses`: host:port of every rank, in order, where the ranks' collectives connect to each other."""

    rank: int
    addresses: tuple[str, ...]
    parallel: Parallel

    @property
    def count(self) -> int:
        return len(self.addresses)
