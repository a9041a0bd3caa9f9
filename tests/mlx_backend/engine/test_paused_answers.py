"""Sequences of class batch that make room for others get the answers that they would have had, on a real engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mlx_backend.api.errors import QueueFull
from mlx_backend.api.interface import Engine, EngineConfig, MockConfig, PrefixCacheConfig, SchedulerConfig
from tests.engine_client import request, running, tokens, until
from tests.tiny_models import VOCAB_SIZE, write_model


async def paused(engine: Engine, num_batch: int, num_tokens: int) -> tuple[list[list[int]], list[list[int]]]:
    """Answers of a batch, and of chats that come one after the other while it is computed."""
    prompts = [[(7 * place + n) % VOCAB_SIZE for n in range(20 + place)] for place in range(num_batch)]
    batch = asyncio.create_task(
        tokens(engine.submit([request(each, num_tokens, priority="batch") for each in prompts]))
    )
    await until(lambda: engine.stats().num_running == num_batch)
    chats = []
    for place in range(3):
        chats += await tokens(engine.submit([request([5, place + 1, 9, 4], 12, priority="live")]))
        await asyncio.sleep(0.02)
    return await batch, chats


async def alone(engine: Engine, num_batch: int, num_tokens: int) -> tuple[list[list[int]], list[list[int]]]:
    """The same, none beside others."""
    prompts = [[(7 * place + n) % VOCAB_SIZE for n in range(20 + place)] for place in range(num_batch)]
    batch = [await tokens(engine.submit([request(each, num_tokens)])) for each in prompts]
    chats = [await tokens(engine.submit([request([5, place + 1, 9, 4], 12)])) for place in range(3)]
    return [each for (each,) in batch], [each for (each,) in chats]


@pytest.mark.parametrize("keeps", [True, False])
async def test_a_batch_that_is_paused_says_the_same(keeps: bool) -> None:
    config = EngineConfig(
        model_path="mock",
        backend="mock",
        mock=MockConfig(itl_s=0.002),
        scheduler=SchedulerConfig(max_num_seqs=4),
        prefix_cache=PrefixCacheConfig(enabled=keeps, chunk_tokens=16),
    )
    async with running(config) as engine:
        found = await paused(engine, 4, 150)
        stats = {each.priority: each for each in engine.stats().classes}
        assert stats["batch"].num_pauses > 0 == engine.stats().num_preemptions
        assert (stats["batch"].num_output_tokens, stats["live"].num_output_tokens) == (600, 36)
        assert found == await alone(engine, 4, 150)


@pytest.mark.mlx
async def test_with_a_model_too(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama")
    config = EngineConfig(
        model_path=str(folder),
        scheduler=SchedulerConfig(max_num_seqs=3),
        prefix_cache=PrefixCacheConfig(chunk_tokens=16),
    )
    async with running(config) as engine:
        found = await paused(engine, 3, 60)
        assert {each.priority: each.num_pauses for each in engine.stats().classes}["batch"] > 0
        assert found == await alone(engine, 3, 60)


async def test_a_crowd_that_waits_refuses_its_own_class_alone() -> None:
    config = EngineConfig(
        model_path="mock",
        backend="mock",
        mock=MockConfig(itl_s=0.01),
        scheduler=SchedulerConfig(max_num_seqs=1, max_waiting=2),
    )
    async with running(config) as engine:
        streams = [engine.submit([request([1, 2], 500, priority="batch")])]
        await until(lambda: engine.stats().num_running == 1)
        streams += [engine.submit([request([1, 2], 500, priority="batch")]) for _ in range(2)]
        with pytest.raises(QueueFull):
            engine.submit([request([1, 2], 500, priority="batch")])
        assert len((await tokens(engine.submit([request([1, 2, 3], 4, priority="normal")])))[0]) == 4
        for stream in streams:
            await stream.aclose()
