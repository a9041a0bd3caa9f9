"""Gain and cost of speculation: tokens per second with it and without, in turn, in one process.

python -m bench.speculation [--rounds 3] [--tokens 200] [--batches 1,4,8] [--model made|pocket|FOLDER]

The made model has random weights, and its drafts are known: its own output, predicted by the client with a share of
changed tokens by workload. So the accepted share is that of an edit of a file, of an extraction, or none. The pocket
model answers questions it can, with n-grams alone.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.checkpoint import write_checkpoint
from bench.in_turn import MADE, ask, in_turn, loaded, random_prompts
from mlx_backend.api.interface import (
    SpeculationConfig,
)

NUM_LAYERS = 8


@dataclass(frozen=True, slots=True)
class Workload:
    """`changed`: share of the predicted tokens that differ from the output; None: no prediction."""

    name: str
    changed: float | None


WORKLOADS = (
    Workload("edit of a given file", 0.02),
    Workload("extraction", 0.15),
    Workload("free chat", None),
    Workload("never right", 1.0),
)


def predicted(output: Sequence[int], changed: float, source: random.Random, vocab_size: int) -> tuple[int, ...]:
    """Return an output as a client would predict it; never right if all of it is changed."""
    if changed >= 1.0:  # matched again and again, and each time followed by something else
        return tuple(token if i % 4 else (token + 1) % vocab_size for i, token in enumerate(output))
    return tuple((t + 1) % vocab_size if source.random() < changed else t for t in output)


async def _run(arguments: argparse.Namespace, folder: Path) -> None:
    async with loaded(folder, SpeculationConfig(kind="ngram", max_tokens=arguments.drafts)) as (engines, info):
        print(f"| {'workload':22} | batch | off tok/s | on tok/s | on/off (all rounds) | accepted | tokens a step |")
        for batch in map(int, arguments.batches.split(",")):
            source = random.Random(batch)
            prompts = random_prompts(source, batch, info.vocab_size)
            _, outputs, _ = await ask(engines["off"], prompts, [()] * batch, arguments.tokens)
            await ask(engines["on"], prompts, [()] * batch, arguments.tokens)
            for workload in WORKLOADS:
                given = [
                    () if workload.changed is None else predicted(o, workload.changed, source, info.vocab_size)
                    for o in outputs
                ]
                found = await in_turn(
                    engines, prompts, given, outputs, num_tokens=arguments.tokens, rounds=arguments.rounds
                )
                print(
                    f"| {workload.name:22} | {batch:5} | {found.median('off'):9.1f} "
                    f"| {found.median('on'):8.1f} | {statistics.median(found.ratios):6.3f} "
                    f"({', '.join(f'{r:.2f}' for r in found.ratios)}) | {statistics.mean(found.shares):8.0%} "
                    f"| {statistics.mean(found.steps):6.2f} |",
                    flush=True,
                )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.speculation")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--batches", default="1,4,8")
    parser.add_argument("--drafts", type=int, default=8)
    parser.add_argument("--model", default="made")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as work:
        if arguments.model == "made":
            folder = Path(work)
            write_checkpoint(folder, "llama", num_hidden_layers=NUM_LAYERS, **MADE)
        elif arguments.model == "pocket":
            folder = Path("server/pocket")
        else:
            folder = Path(arguments.model)
        asyncio.run(_run(arguments, folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
