"""Gathering: rank 0's side of a start, from listening until every other rank has joined. No MLX.

Ranks on this machine, which rank 0 starts itself, and those of a hostfile join in the same way: they connect, prove the
key, send their versions, and receive their rank or the reason of a refusal.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.hosts import RankHosts
from mlx_backend.api.interface import EngineConfig
from mlx_backend.core.membership import Membership
from mlx_backend.model.checkpoint import open_checkpoint
from mlx_backend.model.fingerprint import fingerprints
from mlx_backend.planning.ranks import read_split
from mlx_backend.ranks import messages
from mlx_backend.ranks.addresses import LOOPBACK, free_addresses, parse
from mlx_backend.ranks.channel import Channel
from mlx_backend.ranks.key import KeyFileError, derive, read_key
from mlx_backend.ranks.listener import Listener
from mlx_backend.ranks.local import LocalRanks
from mlx_backend.ranks.seats import Seat, Seats, plain

logger = logging.getLogger("pippin.ranks")

Joined = Callable[[int, Channel, bytes], None]
"""Called with the rank, its channel, and the message with its instructions."""


class Gathering:
    """The ranks of one configuration, none of which has joined."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self.processes = LocalRanks(config.ranks.count if config.hosts is None else 1)
        """Ranks that this process starts."""

    def gather(self, joined: Joined, check: Callable[[], None]) -> Membership:
        """Wait until every other rank has joined; return the membership of rank 0.

        `check` is called meanwhile, and may raise. Raises ModelLoadError.
        """
        hosts, memberships = self._config.hosts, memberships_of(self._config)
        secret, model = secrets.token_hex(32), self._model()
        try:
            host, port = (LOOPBACK, 0) if hosts is None else parse(hosts.listen)
            key = derive(secret) if hosts is None else read_key(self._config.ranks.key or "")
            seats = Seats(_seats(hosts, len(memberships)), messages.versions())
            listener = Listener(host, port, key, seats)
        except KeyFileError as error:
            raise ModelLoadError(f"ranks.key: {error}") from None
        except (OSError, ValueError) as error:
            advice = "" if hosts is None else "; run this on rank 0's machine, or set another ranks.port"
            raise ModelLoadError(f"ranks: {error}{advice}") from error
        with listener:
            leader = f"{host}:{listener.port}" if hosts is None else hosts.listen
            self.processes.start(leader, secret)
            if hosts is not None:
                logger.info("waiting for %s: pippin join %s --key @FILE", _named(seats.free), leader)
            deadline = time.monotonic() + self._config.ranks.join_s
            num_joined = 0
            while num_joined < len(memberships) - 1:
                check()
                self.processes.check_running(seats.taken)
                if time.monotonic() > deadline:
                    raise ModelLoadError(self._late(seats, leader, listener.last_refusal))
                if (found := listener.next()) is None:
                    continue
                rank, channel = found
                logger.info("rank %d has joined", rank)
                joined(rank, channel, self._begin(memberships[rank], model))
                num_joined += 1
        return memberships[0]

    def _model(self) -> dict[str, str]:
        """Return the fingerprints of the model's files; none for the mock. Raises ModelLoadError."""
        if self._config.backend == "mock":
            return {}
        try:
            return fingerprints(open_checkpoint(Path(self._config.model_path)))
        except OSError as error:
            raise ModelLoadError(f"{error.filename}: {error.strerror or error}; fetch the model again") from error

    def _begin(self, membership: Membership, model: dict[str, str]) -> bytes:
        hosts = self._config.hosts
        return messages.write(
            {
                "call": "begin",
                "config": messages.config_fields(self._config),
                "membership": messages.membership_fields(membership),
                "model": self._config.model_path if hosts is None else hosts.model,
                "files": model,
            }
        )

    def _late(self, seats: Seats, leader: str, refusal: str | None) -> str:
        late = f"ranks: {_named(seats.free)} did not join within {self._config.ranks.join_s:.0f} s"
        if self._config.hosts is None:
            return late
        last = f"; the last that was refused: {refusal}" if refusal is not None else ""
        return f"{late}; there: pippin join {leader} --key @FILE{last}"


def memberships_of(config: EngineConfig) -> tuple[Membership, ...]:
    """Return the membership of every rank. Raises ModelLoadError."""
    split, parallel, hosts = read_split(config.ranks.split), config.ranks.parallel, config.hosts
    if hosts is None:
        addresses = free_addresses(config.ranks.count)
        return tuple(Membership(rank, addresses, parallel, split, (), len(addresses)) for rank in range(len(addresses)))
    addresses = tuple(host.address for host in hosts.hosts)
    rdma = tuple(host.rdma for host in hosts.hosts) if all(host.rdma for host in hosts.hosts) else ()
    further = tuple(host.further for host in hosts.hosts) if all(host.further for host in hosts.hosts) else ()
    machines = [frozenset(map(plain, host.ips)) for host in hosts.hosts]
    return tuple(
        Membership(rank, addresses, parallel, split, rdma, len([each for each in machines if each & own]) or 1, further)
        for rank, own in enumerate(machines)
    )


def _seats(hosts: RankHosts | None, count: int) -> list[Seat]:
    if hosts is None:
        return [Seat(rank, "this machine", frozenset({LOOPBACK})) for rank in range(1, count)]
    rows = list(enumerate(hosts.hosts))[1:]
    return [Seat(rank, host.name, frozenset(map(plain, host.ips))) for rank, host in rows]


def _named(seats: tuple[Seat, ...]) -> str:
    return ", ".join(f"rank {seat.rank} ({seat.name})" for seat in seats)
