"""What a draft model gains and costs: tokens a second with it and without, in turn, in one process.

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
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.checkpoint import write_checkpoint
from bench.speculation import PROMPT_TOKENS, ask
from mlx_backend.api.interface import EngineConfig, PrefixCacheConfig, SpeculationConfig
from mlx_backend.factory import create_engine

MADE = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 2}


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
    async with AsyncExitStack() as stack:
        engines = {}
        for name, speculation in (
            ("off", SpeculationConfig()),
            ("on", SpeculationConfig(kind="draft-model", draft_model=str(draft), max_tokens=arguments.drafts)),
        ):
            config = EngineConfig(
                model_path=str(model), prefix_cache=PrefixCacheConfig(enabled=False), speculation=speculation
            )
            engines[name] = create_engine(config)
            engines[name].start()
            stack.callback(engines[name].close)
        while not all(engine.model_info or engine.failure for engine in engines.values()):
            await asyncio.sleep(0.05)
        info = engines["on"].model_info
        if info is None:
            raise SystemExit(str(engines["on"].failure))
        for batch in map(int, arguments.batches.split(",")):
            source = random.Random(batch)
            prompts = [[source.randrange(info.vocab_size) for _ in range(PROMPT_TOKENS)] for _ in range(batch)]
            nothing = [()] * batch
            _, outputs, _ = await ask(engines["off"], prompts, nothing, arguments.tokens)
            await ask(engines["on"], prompts, nothing, arguments.tokens)
            speeds: dict[str, list[float]] = {"off": [], "on": []}
            shares, steps = [], []
            for number in range(arguments.rounds):
                for name in ("off", "on") if number % 2 else ("on", "off"):
                    before = engines[name].stats().num_steps
                    speed, got, share = await ask(engines[name], prompts, nothing, arguments.tokens)
                    speeds[name].append(speed)
                    if got != outputs:
                        print(f"  {name}: other tokens than without", file=sys.stderr)
                    if name == "on":
                        shares.append(share)
                        steps.append(arguments.tokens / (engines[name].stats().num_steps - before))
            ratios = [on / off for on, off in zip(speeds["on"], speeds["off"], strict=True)]
            told = json.dumps({name: round(statistics.median(each), 1) for name, each in speeds.items()})
            print(
                f"{workload.name:13} batch {batch}: tok/s {told}, on/off {statistics.median(ratios):.3f} "
                f"({', '.join(f'{r:.2f}' for r in ratios)}), accepted {statistics.mean(shares):.0%}, "
                f"tokens a step {statistics.mean(steps):.2f}, won {engines['on'].stats().speculation.won_s:.2f} s",
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
