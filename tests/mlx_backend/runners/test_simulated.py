"""The simulated runner: it plans the delays that the planner predicts, and divides memory as that machine would.

Nothing here waits: the runner's clock is the test's.
"""

from __future__ import annotations

import collections.abc
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import (
    ContextConfig,
    EngineConfig,
    GenerationRequest,
    KVCacheConfig,
    LoadProgress,
    MemoryConfig,
    SimulateConfig,
)
from mlx_backend.core.sequence import SequenceGroup, TokenSequence, build_groups
from mlx_backend.core.step import StepPlan
from mlx_backend.factory import create_engine, read_shape
from mlx_backend.kv_cache.plan import CacheShape, plan_caches
from mlx_backend.planning.machines import find_machine
from mlx_backend.planning.memory import ModelShape
from mlx_backend.planning.planner import decode_speed, prefill_speed
from mlx_backend.runners.simulated import PlannedSpeed, SimulatedRunner
from tests.engine_client import one, running

PROFILES = Path(__file__).parents[3] / "server" / "profiles"
R1, QWEN, GPT_OSS = "deepseek-r1-4bit", "qwen3-8b-4bit", "gpt-oss-120b-mxfp4"
MACHINE = "m3-ultra-512"


@cache
def shape_of(model: str) -> tuple[ModelShape, tuple[CacheShape, ...]]:
    return read_shape(str(PROFILES / f"{model}.json"))


def config(model: str = QWEN, machine: str = MACHINE, **sections: Any) -> EngineConfig:
    sections.setdefault("simulate", SimulateConfig(machine=machine, model=model))
    return EngineConfig(model_path=str(PROFILES / f"{model}.json"), backend="mock", **sections)


class Clocked(SimulatedRunner):
    """With a clock that only waiting moves."""

    now = 100.0

    def _now(self) -> float:
        return self.now

    def _wait(self, seconds: float) -> None:
        self.now += seconds


def clocked(model: str = QWEN, machine: str = MACHINE, **sections: Any) -> Clocked:
    return Clocked(config(model, machine, **sections), *shape_of(model))


def prefills(*lengths: int, max_tokens: int = 8) -> tuple[SequenceGroup, ...]:
    return build_groups(
        [GenerationRequest(request_id="r", prompt_ids=(7,) * n, max_tokens=max_tokens) for n in lengths]
    )


def quiet(progress: LoadProgress) -> None:
    """Nobody watches."""


def compute(runner: Clocked, group: SequenceGroup, *sizes: int) -> list[float]:
    """The prompt in chunks of these sizes; what each took."""
    took = []
    for size in sizes:
        before = runner.now
        runner.prefill(group.chunk(group.num_computed_tokens, group.num_computed_tokens + size))
        group.num_computed_tokens += size
        took.append(runner.now - before)
    return took


def steps(runner: Clocked, sequences: collections.abc.Sequence[TokenSequence], number: int) -> float:
    """So many decode steps, each started before the one before is collected; what they took in all."""
    before = runner.now
    start(runner, sequences)
    for _ in range(number - 1):
        start(runner, sequences)
        runner.collect()
    runner.collect()
    return runner.now - before


def start(runner: Clocked, sequences: collections.abc.Sequence[TokenSequence]) -> None:
    """A step of these, and of no others."""
    rows = [sequence.row(0) for sequence in sequences if sequence.id not in runner._rows]
    ids = tuple(sequence.id for sequence in sequences)
    ended = tuple(each for each in runner._rows if each not in ids)
    plan = StepPlan(ended=ended, new_rows=tuple(rows), decodes=ids, dropped=tuple(row.prompt for row in rows))
    runner.start(plan, lambda newest: ())


# --- the pace


@pytest.mark.parametrize("model", [R1, QWEN, GPT_OSS])
def test_chunks_of_a_prompt_take_together_what_the_planner_says(model: str) -> None:
    shape, caches = shape_of(model)
    machine = find_machine(MACHINE)
    pace = PlannedSpeed(shape, plan_caches(caches, KVCacheConfig()), machine)
    chunks = [pace.chunk_s(start, 512) for start in range(0, 8192, 512)]
    predicted = prefill_speed(shape, machine, 8192)
    assert predicted is not None
    assert sum(chunks) == pytest.approx(8192 / predicted.value)
    assert chunks == sorted(chunks)  # a token costs more, the more is before it
    assert chunks[-1] > chunks[0]


@pytest.mark.parametrize("model", [R1, QWEN, GPT_OSS])
@pytest.mark.parametrize(("rows", "context"), [(1, 1), (1, 4096), (8, 4096), (8, 16384)])
def test_a_step_takes_what_the_planner_says(model: str, rows: int, context: int) -> None:
    shape, caches = shape_of(model)
    machine, plans = find_machine(MACHINE), plan_caches(caches, KVCacheConfig())
    predicted = decode_speed(shape, plans, machine, max(context, 256), rows)
    assert predicted is not None
    assert PlannedSpeed(shape, plans, machine).step_s(rows, context) == pytest.approx(1 / predicted.value)
    assert PlannedSpeed(shape, plans, machine, 50).step_s(rows, context) == pytest.approx(1 / predicted.value / 50)


def test_r1_on_the_machine_made_for_it_has_the_published_pace() -> None:
    """18 to 23 tokens a second at 4,096 tokens, as configs/r1-m3-ultra-512.yaml says."""
    shape, caches = shape_of(R1)
    pace = PlannedSpeed(shape, plan_caches(caches, KVCacheConfig()), find_machine(MACHINE))
    assert 18 < 1 / pace.step_s(1, 4096) < 23


# --- the runner, on a clock of the test's


def test_a_prompt_and_its_answer_take_what_was_planned() -> None:
    runner = clocked()
    (group,) = prefills(3001)
    took = compute(runner, group, 2048, 952)
    assert took == pytest.approx([runner.pace.chunk_s(0, 2048), runner.pace.chunk_s(2048, 952)])
    expected = sum(runner.pace.step_s(1, 3000 + place) for place in range(5))
    assert steps(runner, group.sequences, 5) == pytest.approx(expected)


def test_a_batch_reads_the_columns_of_its_groups_and_not_of_its_longest_row() -> None:
    runner = clocked()
    short, long, other = (group.sequences[0] for group in prefills(10, 90_000, 90_000))
    assert steps(runner, [short], 1) < steps(runner, [long], 1) <= steps(runner, [short, long], 1)
    assert steps(runner, [short, long], 1) < 0.8 * steps(runner, [other, long], 1)


def test_a_chunk_waits_for_the_step_before_it() -> None:
    runner = clocked()
    decoding, prompt = prefills(10, 2000)
    start(runner, decoding.sequences)
    (took,) = compute(runner, prompt, 1000)
    assert took == pytest.approx(runner.pace.step_s(1, 9) + runner.pace.chunk_s(0, 1000))
    before = runner.now
    runner.collect()
    assert runner.now == before  # it was done meanwhile


@pytest.mark.parametrize(
    ("disk", "speed", "load_s"), [(6.0, 1.0, 377.6 / 6.0), (6.0, 10.0, 37.76 / 6.0), (None, 1.0, 0.0)]
)
def test_loading_takes_what_the_disk_takes(disk: float | None, speed: float, load_s: float) -> None:
    simulate = SimulateConfig(machine=MACHINE, model=R1, disk_gb_s=disk, speed=speed)
    runner = clocked(R1, simulate=simulate)
    told: list[LoadProgress] = []
    before = runner.now
    info = runner.load(told.append)
    assert runner.now - before == pytest.approx(load_s, rel=1e-3)
    assert told[-1].done_bytes == told[-1].total_bytes == info.weights_bytes > 377e9


# --- what the machine says of itself


def test_r1_is_wired_and_batched() -> None:
    info = clocked(R1).load(quiet)
    assert info.is_batched and info.unbatched_reason is None
    assert info.memory is not None and info.memory.wired_bytes == info.weights_bytes
    assert info.memory.limit_bytes == find_machine(MACHINE).gpu_limit_bytes
    assert info.memory.limit_basis.startswith("simulated M3 Ultra, 80-core GPU, 512 GB")
    assert (info.context_limited_by, info.context_limit) == ("model", 163_840)
    assert sum(cache.num_layers * cache.bytes_per_token for cache in info.kv_caches) == 70_272
    unwired = clocked(R1, memory=MemoryConfig(wired="never")).load(quiet)
    assert unwired.is_batched and unwired.memory is not None and unwired.memory.wired_bytes == 0


def test_what_fits_is_limited_by_the_machine() -> None:
    large, small = (clocked(QWEN, machine).load(quiet).context_limit for machine in (MACHINE, "m1-16"))
    assert small < large == shape_of(QWEN)[0].context_length
    quantized = clocked(QWEN, "m1-16", kv_cache=KVCacheConfig(bits=4)).load(quiet)
    assert quantized.context_limit > small
    limited = clocked(QWEN, context=ContextConfig(limit=2048)).load(quiet)
    assert (limited.context_limit, limited.context_limited_by) == (2048, "configuration")


@pytest.mark.parametrize(
    ("model", "machine", "sections", "says"),
    [
        (R1, "m1-16", {}, "does not fit M1.*377.6 GB"),
        (QWEN, "m9-ultra-4", {}, "simulate.machine: Unknown machine 'm9-ultra-4'"),
        (QWEN, MACHINE, {"context": ContextConfig(limit=10**7)}, "more than the model's own"),
    ],
)
def test_what_cannot_be_is_refused(model: str, machine: str, sections: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelLoadError, match=says):
        clocked(model, machine, **sections).load(quiet)


def test_bytes_are_counted_as_if_they_were_held() -> None:
    runner = clocked(R1)
    assert runner.kv_bytes() == 0
    (group,) = prefills(1001)
    compute(runner, group, 1000)
    single = runner.kv_bytes()
    assert 1000 * 70_272 <= single <= 1024 * 70_272
    steps(runner, group.sequences, 1)
    assert runner.kv_bytes() >= 1000 * 70_272
    now, peak = runner.device_bytes()
    assert peak >= now > shape_of(R1)[0].weights_bytes


async def test_the_engine_serves_it() -> None:
    """The real scheduler and admission over it, so fast that nobody waits."""
    simulate = SimulateConfig(machine="m1-16", model=QWEN, speed=1e6)
    async with running(config(QWEN, simulate=simulate)) as engine:
        info = engine.model_info
        assert info is not None and info.is_batched and info.memory is not None
        assert len(await one(engine, (7,) * 500, 12)) == 12
        assert engine.stats().active_bytes >= info.weights_bytes > 4e9


def test_the_factory_knows_it() -> None:
    engine = create_engine(config(QWEN))
    assert type(engine._runner).__name__ == "SimulatedRunner"  # type: ignore[attr-defined]
