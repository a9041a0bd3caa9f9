"""Default chats at once, by their worst case and by their expected length: memory of Macs with 48, 24 and 16 GB.

The simulated runner in process, without delays: lengths are random, and held memory is counted as by the planner.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace
from unittest import mock

from rich.console import Console
from rich.table import Table

from mlx_backend.api.interface import (
    EngineConfig,
    EngineStats,
    GenerationRequest,
    MockText,
    PrefixCacheConfig,
    SchedulerConfig,
    SimulateConfig,
)
from mlx_backend.core.sequence import SequenceGroup
from mlx_backend.core.step import ReadMasks, StepPlan
from mlx_backend.engine.engine import DeviceEngine
from mlx_backend.engine.expected_length import ExpectedLength
from mlx_backend.engine.reservations import alive_of, reserve_expected
from mlx_backend.kv_cache.plan import CacheShape, PartShape
from mlx_backend.planning.admission import Reservation
from mlx_backend.planning.memory import AttentionShape, ModelShape
from mlx_backend.runners.simulated import SimulatedRunner

MACHINES = {"m4-pro-48": 48, "m2-24": 24, "m2-16": 16}
NUM_REQUESTS = 150
_MEDIAN, _SPREAD = 300, 1.2
"""Tokens of an answer, and the standard deviation of their logarithm: one in a hundred has more than 5,000."""
_VOCABULARY = 250
_END = 256


@dataclass(frozen=True)
class Model:
    """A dense 8B model in 4 bits, as far as memory depends on it."""

    name: str
    num_layers: int
    context: int
    widest: int
    vocab_size: int
    weights_bytes: int

    @property
    def shape(self) -> ModelShape:
        return ModelShape(
            model_type="llama",
            num_parameters=8 * 10**9,
            weights_bytes=self.weights_bytes,
            active_parameters=8 * 10**9,
            active_bytes=self.weights_bytes,
            num_layers=self.num_layers,
            hidden_size=4096,
            widest=self.widest,
            vocab_size=self.vocab_size,
            context_length=self.context,
            itemsize=2,
            attention=AttentionShape(num_heads=32, key_dim=128, value_dim=128),
            num_full_attention_layers=self.num_layers,
        )

    @property
    def caches(self) -> list[CacheShape]:
        return [CacheShape("plain", PartShape(8, 128, 2), PartShape(8, 128, 2))] * self.num_layers


MODELS = (
    Model("Llama-3.1-8B", 32, 131_072, 28_672, 128_256, 4_500_000_000),
    Model("Qwen3-8B", 36, 40_960, 24_576, 151_936, 4_600_000_000),
)


@dataclass
class Measured:
    """Outcome of serving. `most`: sequences decoding in one step; `mean`: over all steps while others waited."""

    most: int
    mean: float
    num_steps: int
    num_tokens: int
    stats: EngineStats


class _Instant(SimulatedRunner):
    """Simulated runner that takes no time and records how many rows decode."""

    def __init__(self, config: EngineConfig, model: Model) -> None:
        super().__init__(config, model.shape, model.caches)
        self.num_rows: list[int] = []

    def _wait(self, seconds: float) -> None: ...

    def start(self, plan: StepPlan, read_masks: ReadMasks) -> None:
        if plan.decodes:
            self.num_rows.append(len(plan.decodes))
        super().start(plan, read_masks)


def print_admission() -> None:
    """Print a table: each model on each machine, by the worst case of requests and by their expected length."""
    table = Table(
        "model", "GB", "admission", "at once", "mean rows", "steps", "preempted", "computed again", "finished"
    )
    for model in MODELS:
        for machine, memory in MACHINES.items():
            for how in ("worst case", "expected", "expected, no prefix cache"):
                found = asyncio.run(_serve(model, machine, how))
                table.add_row(
                    model.name,
                    str(memory),
                    how,
                    str(found.most),
                    f"{found.mean:.1f}",
                    f"{found.num_steps:,}",
                    str(found.stats.num_preemptions),
                    f"{100 * found.stats.num_recomputed_tokens / found.num_tokens:.2f} %",
                    f"{found.stats.num_finished} of {NUM_REQUESTS}",
                )
    Console().print(table)


def _worst_case(group: SequenceGroup, lengths: ExpectedLength) -> Reservation:
    """Reserve as admission did before: prompt and all of max_tokens."""
    return Reservation(len(alive_of(group)), group.num_tokens, group.max_num_tokens, is_prefilled=not group.is_wanted)


async def _serve(model: Model, machine: str, how: str) -> Measured:
    config = EngineConfig(
        model_path="simulated",
        backend="mock",
        scheduler=SchedulerConfig(max_num_seqs=32),
        simulate=SimulateConfig(machine=machine),
        prefix_cache=PrefixCacheConfig(enabled="no prefix" not in how),
    )
    runner = _Instant(config, model)
    counts = _worst_case if how == "worst case" else reserve_expected
    with mock.patch("mlx_backend.engine.scheduler.reserve_expected", counts):
        engine = DeviceEngine(config, runner)
        engine.start()
        while engine.model_info is None:
            await asyncio.sleep(0.01)
        asked = _requests(engine.model_info.context_limit)
        streams = [engine.submit([each]) for each in asked]
        waited = 0

        async def read(stream: object) -> None:
            nonlocal waited
            async for _ in stream:  # type: ignore[attr-defined]
                if engine.stats().num_waiting:
                    waited = len(runner.num_rows)

        await asyncio.gather(*map(read, streams))
        stats = engine.stats()
        engine.close()
    rows = runner.num_rows
    full = rows[: waited or len(rows)]
    return Measured(max(rows), sum(full) / len(full), len(rows), sum(rows), stats)


def _requests(context: int) -> list[GenerationRequest]:
    """Return chats without `max_tokens`, which may use the rest of the context. The same for every way of admission."""
    source = random.Random(7)
    found = []
    for place in range(NUM_REQUESTS):
        num_prompt = min(4000, int(400 * source.lognormvariate(0, 1)) + 1)
        length = min(context - num_prompt, 20_000, int(_MEDIAN * source.lognormvariate(0, _SPREAD)) + 1)
        prompt_ids = tuple((place * 31 + number * 7 + number // 250) % _VOCABULARY for number in range(num_prompt))
        text = tuple((place + number) % _VOCABULARY for number in range(length))
        request = GenerationRequest(request_id=str(place), prompt_ids=prompt_ids, max_tokens=context - num_prompt)
        found.append(replace(request, stop_ids=frozenset({_END}), mock=MockText(outputs=(text,))))
    return found
