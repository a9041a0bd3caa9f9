"""The whole run: rounds of servers, one server at a time, each through the workloads. Measures; reports nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.client import Client, open_http
from bench.figures import Figures
from bench.prompts import Prompts
from bench.raw_process import RawProcess
from bench.servers import RunningServer, ServerKind, StartError, run_server
from bench.workloads import WORKLOADS, Bench, warm_up


@dataclass(frozen=True, slots=True)
class Measurement:
    """One workload on one subject in one round. Raw mlx-lm is measured `beside` a server, others alone."""

    round: int
    subject: str
    workload: str
    figures: Figures
    beside: str | None = None
    errors: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """Measurements to take. `say` receives progress messages for people."""

    model: Path
    kinds: Sequence[ServerKind]
    workloads: Sequence[str]
    num_rounds: int
    say: Callable[[str], None] = print


def order_of(kinds: Sequence[ServerKind], number: int) -> list[ServerKind]:
    """Return the servers of round `number` (from 1): even rounds run in reverse, so that drift cancels out."""
    return list(kinds) if number % 2 else list(reversed(kinds))


def measure(plan: Plan, prompts: Prompts, raw: RawProcess | None) -> list[Measurement]:
    """Run all rounds. A server that does not start has no measurements in that round; `say` receives the reason."""
    found: list[Measurement] = []
    for number in range(1, plan.num_rounds + 1):
        for kind in order_of(plan.kinds, number):
            plan.say(f"round {number}: {kind.name}")
            try:
                with run_server(kind, plan.model) as server:
                    found += asyncio.run(_measure_server(plan, number, kind.name, server, prompts, raw))
            except StartError as error:
                plan.say(str(error))
    return found


async def _measure_server(
    plan: Plan, number: int, subject: str, server: RunningServer, prompts: Prompts, raw: RawProcess | None
) -> list[Measurement]:
    found: list[Measurement] = []
    async with open_http(server.url) as http:
        bench = Bench(Client(http, server.model), prompts, raw)
        await warm_up(bench)
        for workload in plan.workloads:
            plan.say(f"round {number}: {subject}, {workload}")
            outcome = await WORKLOADS[workload](bench)
            found.append(Measurement(number, subject, workload, outcome.figures, errors=outcome.errors))
            if outcome.raw_figures:
                found.append(Measurement(number, "raw", workload, outcome.raw_figures, beside=subject))
    found += _memory(number, subject, server)
    return found


def _memory(number: int, subject: str, server: RunningServer) -> Iterator[Measurement]:
    peak_bytes = server.peak_bytes()
    if peak_bytes is not None:
        yield Measurement(number, subject, "memory", {"peak_bytes": float(peak_bytes)})
