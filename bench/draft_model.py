"""Gain and cost of a draft model: tokens a second with it and without, in turn, in one process.

python -m bench.draft_model [--rounds 3] [--tokens 200] [--batches 1,4,8] [--layers 12] [--drafts 8]

The model is the draft model with layers behind its own that change what it says as much as a workload wants: nothing at
all, a little, or everything. So the share of drafts that come true is known, and the draft model costs what a model of
one layer costs beside one of many.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.checkpoint import write_checkpoint
from bench.in_turn import MADE, ask, in_turn, loaded, random_prompts
from mlx_backend.api.interface import SpeculationConfig


@dataclass(frozen=True, slots=True)
class Workload:
    """`change`: of what the further layers add, times as much as random layers would."""

    name: str
    change: float


WORKLOADS = (Workload("always right", 0.0), Workload("often right", 0.06), Workload("never right", 1.0))


def write_pair(model: Path, draft: Path, num_layers: int, change: float) -> None:
    """Write a model of `num_layers`, and the draft model that is its first layer."""
    import mlx.core as mx

    write_checkpoint(model, "llama", num_hidden_layers=num_layers, **MADE)
    weights: dict[str, mx.array] = mx.load(str(model / "model.safetensors"))
    own = {name: array for name, array in weights.items() if not name.startswith("model.layers.") or ".0." in name}
    for name in weights.keys() - own.keys():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = weights[name] * change
    write_checkpoint(draft, "llama", num_hidden_layers=1, **MADE)
    mx.save_safetensors(str(draft / "model.safetensors"), own, {"format": "mlx"})
    mx.save_safetensors(str(model / "model.safetensors"), weights, {"format": "mlx"})


async def _run(arguments: argparse.Namespace, workload: Workload, work: Path) -> None:
    model, draft = work / "model", work / "draft"
    write_pair(model, draft, arguments.layers, workload.change)
    speculation = SpeculationConfig(kind="draft-model", draft_model=str(draft), max_tokens=arguments.drafts)
    async with loaded(model, speculation) as (engines, info):
        for batch in map(int, arguments.batches.split(",")):
            prompts, nothing = random_prompts(random.Random(batch), batch, info.vocab_size), [()] * batch
            _, outputs, _ = await ask(engines["off"], prompts, nothing, arguments.tokens)
            await ask(engines["on"], prompts, nothing, arguments.tokens)
            found = await in_turn(
                engines, prompts, nothing, outputs, num_tokens=arguments.tokens, rounds=arguments.rounds
            )
            speeds = json.dumps({name: round(found.median(name), 1) for name in found.speeds})
            print(
                f"{workload.name:13} batch {batch}: tok/s {speeds}, on/off {statistics.median(found.ratios):.3f} "
                f"({', '.join(f'{r:.2f}' for r in found.ratios)}), accepted {statistics.mean(found.shares):.0%}, "
                f"tokens a step {statistics.mean(found.steps):.2f}, "
                f"won {engines['on'].stats().speculation.won_s:.2f} s",
                flush=True,
            )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.draft_model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--batches", default="1,4,8")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--drafts", type=int, default=8)
    arguments = parser.parse_args(argv)
    for workload in WORKLOADS:
        with tempfile.TemporaryDirectory() as work:
            asyncio.run(_run(arguments, workload, Path(work)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
