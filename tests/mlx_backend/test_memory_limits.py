"""Admission by bytes inside the engine: with the mock, whose tokens are counted as if they were held, and with MLX."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.errors import MemoryLimitExceeded, ModelLoadError
from mlx_backend.interface import Engine, EngineConfig, MemoryConfig, MockConfig, SchedulerConfig
from tests.engine_client import one, read, request, running, tokens
from tests.tiny_models import write_model

LIMIT_GB = 0.0013
"""Of which the mock's weights take 1,048,576 bytes; a token takes 16, in steps of 256."""


def mock(limit_gb: float | None = LIMIT_GB, **scheduler: Any) -> EngineConfig:
    return EngineConfig(
        model_path="mock",
        backend="mock",
        memory=MemoryConfig(limit_gb=limit_gb),
        scheduler=SchedulerConfig(**scheduler),
        mock=MockConfig(context=100_000),
    )


async def test_no_limit_is_no_budget() -> None:
    async with running(mock(None)) as engine:
        assert engine.model_info is not None and engine.model_info.memory is None
        await one(engine, (1,) * 5000, 5000)
        assert engine.stats().planned_bytes == 0


async def test_the_context_limit_is_what_fits_and_says_so() -> None:
    async with running(mock()) as engine:
        info = engine.model_info
        assert info is not None and info.memory is not None
        assert info.context_limited_by == "memory"
        assert 1000 < info.context_limit < 100_000
        assert len(await one(engine, (1,) * (info.context_limit - 3), 3)) == 3


async def test_what_never_fits_is_refused_with_what_would() -> None:
    async with running(mock()) as engine:
        assert engine.model_info is not None
        limit = engine.model_info.context_limit
        with pytest.raises(MemoryLimitExceeded, match="for 3 continuations") as raised:
            engine.submit([request((1,) * 10, limit - 10, n=3)])
        largest = raised.value.largest
        assert 0 < largest < limit
        assert len(await tokens(engine.submit([request((1,) * (largest - 4), 4, n=3)]))) == 3


async def test_a_flood_is_answered_and_never_planned_over_the_limit() -> None:
    """300 requests of random lengths up to the limit, 32 at once; sampled as they run."""
    source = random.Random(3)
    async with running(mock(max_waiting=300)) as engine:
        info = engine.model_info
        assert info is not None and info.memory is not None
        budget, seen = info.memory.free_bytes, [0]
        places = asyncio.Semaphore(32)

        async def ask() -> int:
            prompt = source.randint(1, info.context_limit - 40)
            output = source.randint(1, 40)
            async with places:
                answer = await one(engine, (1,) * prompt, output)
            seen.append(engine.stats().planned_bytes)
            assert engine.stats().kv_bytes <= budget
            return len(answer) - output

        assert set(await asyncio.gather(*(ask() for _ in range(300)))) == {0}
        assert max(seen) <= budget
        assert max(seen) > 0
        assert engine.stats().num_finished == 300


async def test_an_aborted_request_gives_its_room_back() -> None:
    async with running(mock()) as engine:
        assert engine.model_info is not None
        limit = engine.model_info.context_limit
        for _ in range(5):
            stream = engine.submit([request((1,) * 10, limit - 10)])
            await anext(aiter(stream))
            waiting = asyncio.create_task(read(engine.submit([request((2,) * (limit - 2), 2)])))
            await stream.aclose()
            assert len((await waiting)[0]) == 2


# --- with MLX


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama", "llama")


def limited(folder: Path, limit_gb: float, **other: Any) -> EngineConfig:
    return EngineConfig(model_path=str(folder), memory=MemoryConfig(limit_gb=limit_gb, reserve_gb=0), **other)


@pytest.mark.mlx
async def test_a_model_that_does_not_fit_is_refused_before_it_is_read(folder: Path) -> None:
    async with running(limited(folder, 0.0003)) as engine:
        assert isinstance(engine.failure, ModelLoadError)
        said = str(engine.failure)
        assert "does not fit: its weights take 0.00 GB, of 0.00 GB (memory.limit_gb)" in said
        assert "pippin plan" in said
        assert engine.health().load.total_bytes == 0


@pytest.mark.mlx
async def test_more_requests_than_fit_wait_their_turn(folder: Path) -> None:
    async with running(limited(folder, 0.004)) as engine:
        info = engine.model_info
        assert info is not None and info.memory is not None, engine.failure
        prompts = [tuple(range(1, 200 + 10 * i)) for i in range(12)]
        outputs = await asyncio.gather(*(one(engine, prompt, 30) for prompt in prompts))
        assert [len(output) for output in outputs] == [30] * 12
        assert await _most_running(engine, prompts) < 12


async def _most_running(engine: Engine, prompts: list[tuple[int, ...]]) -> int:
    most = 0
    tasks = [asyncio.create_task(one(engine, prompt, 30)) for prompt in prompts]
    while not all(task.done() for task in tasks):
        stats = engine.stats()
        most = max(most, stats.num_running)
        assert engine.model_info is not None and engine.model_info.memory is not None
        assert stats.planned_bytes <= engine.model_info.memory.free_bytes
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    return most
