"""The order of a step's calls: no token waits for the chunks of two steps, and no first one for any."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mlx_backend.api.interface import EngineConfig, PrefixCacheConfig, SchedulerConfig
from mlx_backend.core.step import Chunk, StepPlan, StepResult
from mlx_backend.engine.loop import EngineLoop
from mlx_backend.runners.mock import MockRunner
from tests.engine_client import one, request, running, tokens, until

PROMPTS = [bytes(range(1, length)) for length in (9, 40, 90, 120)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the loop does, in order: `step`, a chunk, (`start`, rows), (`collect`, rows)."""
    made: list[Any] = []
    started: list[tuple[int, ...]] = []
    step, start, collect, prefill = EngineLoop.step, MockRunner.start, MockRunner.collect, MockRunner.prefill

    def record_step(self: EngineLoop) -> None:
        made.append("step")
        step(self)

    def record_start(self: MockRunner, plan: StepPlan, read_masks: Any) -> None:
        start(self, plan, read_masks)
        if plan.decodes:
            started.append(tuple(plan.decodes))
            made.append(("start", started[-1]))

    def record_collect(self: MockRunner) -> StepResult:
        made.append(("collect", started.pop(0)))
        return collect(self)

    def record_prefill(self: MockRunner, chunk: Chunk) -> Any:
        made.append(chunk)
        return prefill(self, chunk)

    monkeypatch.setattr(EngineLoop, "step", record_step)
    monkeypatch.setattr(MockRunner, "start", record_start)
    monkeypatch.setattr(MockRunner, "collect", record_collect)
    monkeypatch.setattr(MockRunner, "prefill", record_prefill)
    return made


async def serve_four(calls: list[Any]) -> None:
    """Answer one prompt, and beside it four at once in small chunks: some decode while others are computed."""
    scheduler, prefixes = SchedulerConfig(max_chunk_tokens=8), PrefixCacheConfig(enabled=False)
    config = EngineConfig(model_path="mock", backend="mock", scheduler=scheduler, prefix_cache=prefixes)
    async with running(config) as engine:
        before = asyncio.create_task(one(engine, b"before", 500))
        await until(lambda: len(calls) > 20)
        outputs = await asyncio.gather(*(tokens(engine.submit([request(each, 40)])) for each in PROMPTS))
        assert len(await before) == 500
    assert all(len(output) == 40 for (output,) in outputs)
    assert sum(isinstance(call, Chunk) for call in calls) > 20


async def test_no_token_waits_for_the_chunks_of_two_steps(calls: list[Any]) -> None:
    await serve_four(calls)
    steps: list[bool] = []
    """Whether each step had chunks."""
    last: dict[int, int] = {}
    for call in calls:
        if call == "step":
            steps.append(False)
        elif isinstance(call, Chunk):
            steps[-1] = True
        elif call[0] == "collect":
            num_steps = len(steps) - 1 + steps[-1]
            for row in call[1]:
                assert sum(steps[last.get(row, num_steps) : num_steps]) <= 1
                last[row] = num_steps


async def test_a_first_token_waits_for_no_chunk(calls: list[Any]) -> None:
    await serve_four(calls)
    has_token, waiting = set[int](), set[int]()
    for call in calls:
        if isinstance(call, Chunk):
            assert not waiting
        elif call[0] == "start":
            waiting = set(call[1]) - has_token
        elif call[0] == "collect":
            has_token |= set(call[1])
            waiting -= has_token
    assert len(has_token) == 1 + len(PROMPTS)
