"""Two engines of one process, with speculation and without, asked the same in turn."""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mlx_backend.api.interface import (
    Engine,
    EngineConfig,
    GenerationRequest,
    ModelInfo,
    PrefixCacheConfig,
    SamplingParams,
    SpeculationConfig,
    TokenEvent,
)
from mlx_backend.factory import create_engine

PROMPT_TOKENS = 200
MADE = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 2}
"""Changes of the made model's config, as `write_checkpoint` takes them."""


@dataclass(slots=True)
class Figures:
    """All rounds of one workload: tokens per second of both, and of the engine that drafts what its drafts came to."""

    speeds: dict[str, list[float]] = field(default_factory=lambda: {"off": [], "on": []})
    shares: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [on / off for on, off in zip(self.speeds["on"], self.speeds["off"], strict=True)]

    def median(self, name: str) -> float:
        return statistics.median(self.speeds[name])


@asynccontextmanager
async def loaded(folder: Path, speculation: SpeculationConfig) -> AsyncIterator[tuple[dict[str, Engine], ModelInfo]]:
    """Load a model with and without speculation. Raises SystemExit if it cannot be loaded."""
    engines: dict[str, Engine] = {}
    try:
        for name, given in (("off", SpeculationConfig()), ("on", speculation)):
            cache = PrefixCacheConfig(enabled=False)
            engines[name] = create_engine(EngineConfig(model_path=str(folder), prefix_cache=cache, speculation=given))
            engines[name].start()
        while not all(engine.model_info or engine.failure for engine in engines.values()):
            await asyncio.sleep(0.05)
        info = engines["on"].model_info
        if info is None:
            raise SystemExit(str(engines["on"].failure))
        yield engines, info
    finally:
        for engine in engines.values():
            engine.close()


def random_prompts(source: random.Random, number: int, vocab_size: int) -> list[list[int]]:
    """Return so many prompts of PROMPT_TOKENS."""
    return [[source.randrange(vocab_size) for _ in range(PROMPT_TOKENS)] for _ in range(number)]


async def in_turn(
    engines: dict[str, Engine],
    prompts: Sequence[Sequence[int]],
    predictions: Sequence[Sequence[int]],
    outputs: list[list[int]],
    *,
    num_tokens: int,
    rounds: int,
) -> Figures:
    """Ask both engines in turn; print a line if an answer is not `outputs`."""
    figures = Figures()
    for number in range(rounds):
        for name in ("off", "on") if number % 2 else ("on", "off"):
            before = engines[name].stats().num_steps
            speed, got, share = await ask(engines[name], prompts, predictions, num_tokens)
            figures.speeds[name].append(speed)
            if got != outputs:
                print(f"  {name}: other tokens than without", file=sys.stderr)
            if name == "on":
                figures.shares.append(share)
                figures.steps.append(num_tokens / (engines[name].stats().num_steps - before))
    return figures


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
