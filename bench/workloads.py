"""Requests to a server, a function per workload. Uses the client and raw mlx-lm, and starts neither.

If raw mlx-lm can do the same, it takes turns with the server, prompt by prompt, so that both see the same machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import chain

from bench.client import Client, errors_of
from bench.figures import Figures, batch_figures, conns_figures, fair_figures, prefix_figures, single_figures
from bench.prompts import Prompts
from bench.raw_process import RawProcess
from server.client.record import Record

SINGLE_REPEATS = 7
BATCH_REPEATS = 3
CONNS_TIMEOUT_S = 120.0
LONG_PROMPT = 2048
FAIR_STREAMS = 4
FAIR_HEAD_START = 16
"""Tokens of each stream when the long prompt arrives."""


@dataclass(frozen=True, slots=True)
class Bench:
    """One server under measurement, with the tools of the workloads."""

    client: Client
    prompts: Prompts
    raw: RawProcess | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A workload's figures, those of raw mlx-lm if any, and the failures by kind."""

    figures: Figures
    raw_figures: Figures | None = None
    errors: dict[str, int] = field(default_factory=dict)


async def run_single(bench: Bench) -> Outcome:
    """Run one stream at a time: 256 tokens in, 64 out."""
    served: list[Record] = []
    raw: list[Record] = []
    for _ in range(SINGLE_REPEATS):
        prompt = bench.prompts.make(256)
        if bench.raw:
            raw += bench.raw.generate([prompt], 64)
        served.append(await bench.client.complete(prompt, 64))
    return Outcome(single_figures(served), single_figures(raw) if raw else None, errors_of(served))


async def run_batch8(bench: Bench) -> Outcome:
    """Run 8 streams at once: 64 tokens in, 64 out."""
    served: list[list[Record]] = []
    raw: list[list[Record]] = []
    for _ in range(BATCH_REPEATS):
        prompts = [bench.prompts.make(64) for _ in range(8)]
        if bench.raw:
            raw.append(bench.raw.generate(prompts, 64))
        served.append(await asyncio.gather(*(bench.client.complete(prompt, 64) for prompt in prompts)))
    return Outcome(batch_figures(served), batch_figures(raw) if raw else None, errors_of([*chain(*served)]))


async def run_conns256(bench: Bench) -> Outcome:
    """Open 256 connections at once: 16 tokens in, 8 out."""
    prompts = [bench.prompts.make(16) for _ in range(256)]
    asked = (bench.client.complete(prompt, 8, timeout_s=CONNS_TIMEOUT_S) for prompt in prompts)
    records = await asyncio.gather(*asked)
    return Outcome(conns_figures(records), errors=errors_of(records))


async def run_fair(bench: Bench) -> Outcome:
    """Decode 4 streams when a prompt of 2,048 tokens arrives; such a prompt alone, before and after."""
    alone = [await bench.client.complete(bench.prompts.make(LONG_PROMPT), 4)]
    underway = [asyncio.Event() for _ in range(FAIR_STREAMS)]
    tasks = [asyncio.create_task(_decode_on(bench, event)) for event in underway]
    await asyncio.gather(*(event.wait() for event in underway))
    long = await bench.client.complete(bench.prompts.make(LONG_PROMPT), 4)
    streams = await asyncio.gather(*tasks)
    alone.append(await bench.client.complete(bench.prompts.make(LONG_PROMPT), 4))
    return Outcome(fair_figures(streams, long, alone), errors=errors_of([*streams, long, *alone]))


async def _decode_on(bench: Bench, underway: asyncio.Event) -> Record:
    """Decode a long answer to a short prompt. `underway` is set when it decodes, and also if it fails."""

    def on_text(num_texts: int) -> None:
        if num_texts == FAIR_HEAD_START:
            underway.set()

    try:
        return await bench.client.complete(bench.prompts.make(16), 200, on_text=on_text)
    finally:
        underway.set()


async def run_prefix(bench: Bench) -> Outcome:
    """Send prompts that share their first 1,024 tokens, one after the other; 8 tokens out."""
    shared = bench.prompts.make(1024)
    served: list[Record] = []
    raw: list[Record] = []
    for _ in range(8):
        prompt = shared + bench.prompts.make(8)
        if bench.raw:
            raw += bench.raw.generate_after(prompt, 8)
        served.append(await bench.client.complete(prompt, 8))
    return Outcome(prefix_figures(served), prefix_figures(raw) if raw else None, errors_of(served))


WORKLOADS: dict[str, Callable[[Bench], Awaitable[Outcome]]] = {
    "single": run_single,
    "batch8": run_batch8,
    "conns256": run_conns256,
    "fair": run_fair,
    "prefix": run_prefix,
}
"""In running order."""


async def warm_up(bench: Bench) -> None:
    """Compile and load everything in advance, in both."""
    await bench.client.complete(bench.prompts.make(256), 16)
    if bench.raw:
        bench.raw.generate([bench.prompts.make(256)], 16)
