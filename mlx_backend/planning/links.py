"""The cost of an exchange between ranks, by the link between the machines: a table and a formula. Pure; no MLX.

Only Thunderbolt 5 with RDMA has published speeds of whole models for comparison (see the tests). The other rows are
round trips and rates from reports, or assumed; each states which. Pippin measured none of it on Macs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlx_backend.planning.machines import Machine
from mlx_backend.planning.ranks import Message
from mlx_backend.planning.speed import Estimate

LinkId = Literal["tb5", "tb4", "10gbe", "1gbe"]


@dataclass(frozen=True, slots=True)
class Span:
    """A number that lies between `low` and `high`, most likely at `value`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Link:
    """A way to connect machines."""

    id: LinkId
    name: str
    backend: Literal["jaccl", "ring"]
    """MLX's backend for this link."""
    latency_s: Span
    """Latency of a small collective of two ranks, including the wait for the slower one."""
    bandwidth: Span
    """Bytes per second that a rank sends."""
    basis: str


LINKS: tuple[Link, ...] = (
    Link(
        "tb5",
        "Thunderbolt 5 with RDMA",
        "jaccl",
        Span(60e-6, 26e-6, 120e-6),
        Span(5e9, 3.5e9, 7.6e9),
        "26 us a message (mlx discussion 3939); up to 115 us of a collective explain exo's published speeds on 2 and 4 "
        "M3 Ultra; 3.5 GB/s (mlx#3207), 7.6 GB/s (pytorch#189856)",
    ),
    Link(
        "tb4",
        "Thunderbolt Bridge, TCP",
        "ring",
        Span(300e-6, 200e-6, 600e-6),
        Span(2e9, 0.5e9, 2.5e9),
        "about 300 us a message over TCP (reports of exo's clusters), round trips of 380 to 950 us (exo#2295); "
        "the rate is assumed",
    ),
    Link(
        "10gbe",
        "10 Gb/s Ethernet, TCP",
        "ring",
        Span(300e-6, 150e-6, 600e-6),
        Span(1.1e9, 0.8e9, 1.2e9),
        "assumed: TCP's latency as over Thunderbolt, and the rate of the wire",
    ),
    Link(
        "1gbe",
        "1 Gb/s Ethernet, TCP",
        "ring",
        Span(400e-6, 200e-6, 900e-6),
        Span(0.11e9, 0.09e9, 0.118e9),
        "assumed: somewhat more than TCP's latency over Thunderbolt, and the rate of the wire",
    ),
)


def find_link(link_id: str) -> Link:
    """Return the row with this id. Raises ValueError."""
    for link in LINKS:
        if link.id == link_id.strip().lower():
            return link
    raise ValueError(f"link {link_id!r} must be one of {', '.join(link.id for link in LINKS)}")


def has_thunderbolt_5(machine: Machine) -> bool | None:
    """Return whether such a Mac has it; None for other computers."""
    if machine.generation is None:
        return None
    is_larger = machine.chip.endswith(("Pro", "Max", "Ultra"))
    return machine.chip == "M3 Ultra" or (machine.generation >= 4 and is_larger)


def default_link(machine: Machine) -> Link:
    """Return the fastest link of such machines without a card: Thunderbolt, or Ethernet if that is unknown."""
    has_5 = has_thunderbolt_5(machine)
    return find_link("10gbe" if has_5 is None else "tb5" if has_5 else "tb4")


def exchange_s(messages: Sequence[Message], size: int, link: Link, num_tokens: int = 1) -> Span:
    """Return the seconds of a forward pass of `num_tokens` spent on `messages`, which are those of one token.

    A collective over TCP goes around the ring; over RDMA every rank reaches every other at once.
    """
    collectives = sum(message.kind != "send" for message in messages)
    hops = collectives * (size - 1 if link.backend == "ring" else 1) + len(messages) - collectives
    num_bytes = num_tokens * sum(sent_bytes(message, size) for message in messages)

    def at(latency: float, bandwidth: float) -> float:
        return hops * latency + num_bytes / bandwidth

    latency, bandwidth = link.latency_s, link.bandwidth
    return Span(at(latency.value, bandwidth.value), at(latency.low, bandwidth.high), at(latency.high, bandwidth.low))


def sent_bytes(message: Message, size: int) -> float:
    """Return the bytes that one rank sends for a message: a sum circulates twice in parts, a gather once in whole."""
    if message.kind == "all_sum":
        return 2 * (size - 1) / size * message.num_bytes
    return message.num_bytes * (size - 1 if message.kind == "all_gather" else 1)


def slowed(estimate: Estimate | None, added_s: Span) -> Estimate | None:
    """Return a speed in steps per second with steps that take `added_s` longer; its range covers both ranges."""
    if estimate is None:
        return None
    return Estimate(
        1 / (1 / estimate.value + added_s.value),
        1 / (1 / estimate.low + added_s.high),
        1 / (1 / estimate.high + added_s.low),
    )
