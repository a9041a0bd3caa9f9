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
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.checkpoint import write_checkpoint
from mlx_backend.api.interface import (
    Engine,
    EngineConfig,
    GenerationRequest,
    PrefixCacheConfig,
    SamplingParams,
    SpeculationConfig,
    TokenEvent,
)
from mlx_backend.factory import create_engine

MADE = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 2}
NUM_LAYERS = 8
PROMPT_TOKENS = 200


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


async def ask(
    engine: Engine, prompts: Sequence[Sequence[int]], predictions: Sequence[Sequence[int]], num: int
) -> tuple[float, list[list[int]], float]:
    """Return tokens per second between the first and the last, the outputs, and the accepted share of drafts."""
    requests = [
        GenerationRequest(
            request_id=f"bench-{i}",
            prompt_ids=tuple(prompt),
            max_tokens=num,
            sampling=SamplingParams(temperature=0),
            prediction_ids=tuple(prediction),
        )
        for i, (prompt, prediction) in enumerate(zip(prompts, predictions, strict=True))
    ]
    stream, outputs, first = engine.submit(requests), [list[int]() for _ in requests], 0.0
    async for events in stream:
        for event in events:
            if isinstance(event, TokenEvent):
                outputs[event.index].append(event.token_id)
        if not first and all(outputs):
            first, num_first = time.perf_counter(), sum(map(len, outputs))
    took = time.perf_counter() - first
    drafted = stream.drafted
    share = drafted.num_accepted / drafted.num_drafted if drafted.num_drafted else 0.0
    return (sum(map(len, outputs)) - num_first) / took, outputs, share


async def _run(arguments: argparse.Namespace, folder: Path) -> None:
    async with AsyncExitStack() as stack:
        engines = {}
        for name, speculation in (
            ("off", SpeculationConfig()),
            ("on", SpeculationConfig(kind="ngram", max_tokens=arguments.drafts)),
        ):
            config = EngineConfig(
                model_path=str(folder), prefix_cache=PrefixCacheConfig(enabled=False), speculation=speculation
            )
            engines[name] = create_engine(config)
            engines[name].start()
            stack.callback(engines[name].close)
        while not all(engine.model_info or engine.failure for engine in engines.values()):
            await asyncio.sleep(0.05)
        info = engines["on"].model_info
        if info is None:
            raise SystemExit(str(engines["on"].failure))
        print(f"| {'workload':22} | batch | off tok/s | on tok/s | on/off (all rounds) | accepted | tokens a step |")
        for batch in map(int, arguments.batches.split(",")):
            source = random.Random(batch)
            prompts = [[source.randrange(info.vocab_size) for _ in range(PROMPT_TOKENS)] for _ in range(batch)]
            _, outputs, _ = await ask(engines["off"], prompts, [()] * batch, arguments.tokens)
            await ask(engines["on"], prompts, [()] * batch, arguments.tokens)
            for workload in WORKLOADS:
                given = [
                    () if workload.changed is None else predicted(o, workload.changed, source, info.vocab_size)
                    for o in outputs
                ]
                speeds: dict[str, list[float]] = {"off": [], "on": []}
                shares, steps = [], []
                for number in range(arguments.rounds):
                    for name in ("off", "on") if number % 2 else ("on", "off"):
                        before = engines[name].stats().num_steps
                        speed, got, share = await ask(engines[name], prompts, given, arguments.tokens)
                        speeds[name].append(speed)
                        if got != outputs:
                            print(f"  {name}: other tokens than without", file=sys.stderr)
                        if name == "on":
                            shares.append(share)
                            steps.append(arguments.tokens / (engines[name].stats().num_steps - before))
                ratios = [on / off for on, off in zip(speeds["on"], speeds["off"], strict=True)]
                print(
                    f"| {workload.name:22} | {batch:5} | {statistics.median(speeds['off']):9.1f} "
                    f"| {statistics.median(speeds['on']):8.1f} | {statistics.median(ratios):6.3f} "
                    f"({', '.join(f'{r:.2f}' for r in ratios)}) | {statistics.mean(shares):8.0%} "
                    f"| {statistics.mean(steps):6.2f} |",
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
