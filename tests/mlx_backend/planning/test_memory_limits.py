"""Admission by bytes inside the engine: with the mock, whose tokens are counted as if they were held, and with MLX."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.api.errors import MemoryLimitExceeded, ModelLoadError, OutOfMemory
from mlx_backend.api.interface import Engine, EngineConfig, KVCacheConfig, MemoryConfig, MockConfig, SchedulerConfig
from mlx_backend.core.sequence import build_groups
from mlx_backend.planning.memory import kv_bytes, prefill_bytes
from mlx_backend.runners.device import has_fused_attention
from mlx_backend.runners.mlx import MLXRunner
from mlx_backend.runners.mock import MockRunner
from tests.engine_client import one, read, request, running, tokens, until
from tests.tiny_models import VOCAB_SIZE, write_model

LIMIT_GB = 0.0013
"""Of which the mock's weights take 1,048,576 bytes; a token takes 16, in steps of 256."""
FLOOD_GB = dict.fromkeys(("llama", "deepseek_v3", "gpt_oss", "llama4", "gemma3", "falcon_h1"), 0.003)
"""Full and latent attention, sinks beside windows, attention in chunks, windows, recurrent state."""


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


async def test_a_flood_is_answered_and_never_planned_over_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 requests of random lengths up to the limit, 32 at once; sampled at every step."""
    source, planned = random.Random(3), [0]
    start = MockRunner.start
    async with running(mock(max_waiting=300)) as engine:
        info = engine.model_info
        assert info is not None and info.memory is not None
        budget = info.memory.free_bytes

        def sampled(self: MockRunner, *given: Any) -> None:
            planned.append(engine.stats().planned_bytes)
            start(self, *given)

        monkeypatch.setattr(MockRunner, "start", sampled)
        places = asyncio.Semaphore(32)

        async def ask() -> int:
            prompt = source.randint(1, info.context_limit - 40)
            output = source.randint(1, 40)
            async with places:
                answer = await one(engine, (1,) * prompt, output)
            assert engine.stats().kv_bytes <= budget
            return len(answer) - output

        assert set(await asyncio.gather(*(ask() for _ in range(300)))) == {0}
        assert 0 < max(planned) <= budget
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
    """Without a reserve: what is planned is what is there."""
    memory = MemoryConfig(limit_gb=limit_gb, reserve_gb=0)
    return EngineConfig(model_path=str(folder), memory=memory, **other)


@pytest.mark.mlx
async def test_a_model_that_does_not_fit_is_refused_before_it_is_read(folder: Path) -> None:
    async with running(limited(folder, 0.0003)) as engine:
        assert isinstance(engine.failure, ModelLoadError)
        said = str(engine.failure)
        assert "does not fit: its weights take 0.00 GB, of 0.00 GB (memory.limit_gb)" in said
        assert "pippin plan" in said
        assert engine.health().load.total_bytes == 0


@pytest.mark.mlx
@pytest.mark.parametrize("kind", [*FLOOD_GB, "mamba2"])
def test_a_chunk_takes_no_more_than_is_planned_for_it(kind: str, tmp_path: Path) -> None:
    """A fifth more is let pass: how far results are allocated ahead of what computes them is a matter of threads."""
    import mlx.core as mx

    runner = MLXRunner(limited(write_model(tmp_path / kind, kind), 1))
    runner.load(lambda progress: None)
    budget = runner.budget
    assert budget is not None
    (group,) = build_groups([request(tuple(range(1, 300)) * 3, 2)])
    mx.clear_cache()
    base, step = mx.get_active_memory(), 256
    for start in (0, step, 2 * step):
        mx.reset_peak_memory()
        end = start + step
        runner.prefill(group.chunk(start, end))
        peak = mx.get_peak_memory() - base
        planned = kv_bytes(budget.plans, end) + prefill_bytes(
            budget.shape, budget.plans, step, end, has_fused=has_fused_attention()
        )
        assert peak <= 1.2 * planned, f"{peak / planned:.2f} of what is planned at {end}"


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
        await asyncio.sleep(0.001)
    await asyncio.gather(*tasks)
    return most


# --- memory that runs out all the same


def _runs_out_every(steps: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let every so many-th decode step and chunk fail as MLX fails: half of them before, half after the model ran."""
    counted = [0]
    for name in ("_start", "_compute"):
        whole = getattr(MLXRunner, name)

        def failing(self: Any, *given: Any, whole: Any = whole) -> Any:
            counted[0] += 1
            fails = counted[0] % steps == 0
            if fails and counted[0] // steps % 2:
                raise RuntimeError("[malloc] Unable to allocate 8192 bytes.")
            result = whole(self, *given)
            if fails:
                raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008)")
            return result

        monkeypatch.setattr(MLXRunner, name, failing)
    return counted


async def flood(engine: Engine, asked: list[tuple[tuple[int, ...], int]], at_once: int) -> list[Any]:
    """The outputs, or what was raised; while bytes are sampled, at every answer and in between."""
    places, is_done = asyncio.Semaphore(at_once), False
    info = engine.model_info
    assert info is not None and info.memory is not None

    async def ask(prompt: tuple[int, ...], max_tokens: int) -> list[int]:
        async with places:
            return await one(engine, prompt, max_tokens)

    async def sample() -> None:
        while not is_done:
            stats = engine.stats()
            assert max(stats.planned_bytes, stats.kv_bytes) <= info.memory.free_bytes  # type: ignore[union-attr]
            await asyncio.sleep(0.001)

    sampling = asyncio.create_task(sample())
    answers = await asyncio.gather(*(ask(*each) for each in asked), return_exceptions=True)
    is_done = True
    await sampling
    return answers


async def prove_flood(folder: Path, num_requests: int, limit_gb: float, **other: Any) -> tuple[list[Any], int, int]:
    """(answers, peak of what was allocated, the limit in bytes): random lengths up to the limit, 32 at once."""
    import mlx.core as mx

    mx.clear_cache()
    base = mx.get_active_memory()
    mx.reset_peak_memory()
    source = random.Random(num_requests)
    async with running(limited(folder, limit_gb, **other)) as engine:
        info = engine.model_info
        assert info is not None and info.context_limited_by == "memory", engine.failure
        print(f"context limit {info.context_limit}; peak of loading {(mx.get_peak_memory() - base) / 1e6:.2f} MB")
        asked = []
        for _ in range(num_requests):
            total = source.randint(2, info.context_limit)
            output = source.randint(1, min(total - 1, 60))
            asked.append((tuple(source.randrange(1, VOCAB_SIZE) for _ in range(total - output)), output))
        answers = await flood(engine, asked, at_once=32)
        for (_, output), answer in zip(asked, answers, strict=True):
            assert isinstance(answer, OutOfMemory) or len(answer) == output
        assert engine.health().status == "ok"
        await until(lambda: not engine.stats().kv_bytes)
        return answers, mx.get_peak_memory() - base, round(limit_gb * 1e9)


@pytest.mark.mlx
@pytest.mark.parametrize("kind", FLOOD_GB)
async def test_under_a_flood_what_is_allocated_stays_within_the_limit(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / kind, kind)
    answers, peak, limit = await prove_flood(folder, 16, FLOOD_GB[kind])
    assert not any(isinstance(answer, BaseException) for answer in answers)
    print(f"{kind}: peak {peak / 1e6:.2f} MB of {limit / 1e6:.2f} MB")
    assert limit / 4 < peak <= limit


@pytest.mark.mlx
async def test_when_memory_runs_out_in_a_computation_the_others_get_the_same_tokens(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = random.Random(4)
    asked = [(tuple(source.randrange(1, VOCAB_SIZE) for _ in range(source.randint(1, 200))), 40) for _ in range(16)]
    async with running(EngineConfig(model_path=str(folder))) as engine:
        expected = await asyncio.gather(*(one(engine, *each) for each in asked))
        counted = _runs_out_every(20, monkeypatch)
        answers = await asyncio.gather(*(one(engine, *each) for each in asked), return_exceptions=True)
        assert counted[0] > 40
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        assert {type(answer) for answer in failed} == {OutOfMemory}
        assert 0 < len(failed) <= counted[0] // 20
        assert all(a == e for a, e in zip(answers, expected, strict=True) if not isinstance(a, BaseException))
        assert engine.health().status == "ok"
        await until(lambda: not engine.stats().kv_bytes)


@pytest.mark.mlx
@pytest.mark.soak
@pytest.mark.parametrize("every", [None, 20])
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("kind", ["llama", "deepseek_v3"])
async def test_three_hundred_requests_within_the_limit(
    kind: str, bits: int | None, every: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / kind, kind, **({"head_dim": 64} if kind == "llama" else {}))
    if every is not None:
        _runs_out_every(every, monkeypatch)
    cache = KVCacheConfig(bits=bits, group_size=bits and 32)
    limit_gb = 0.006 if kind != "llama" or bits is not None else 0.01  # less than all of the context
    answers, peak, limit = await prove_flood(folder, 300, limit_gb, kv_cache=cache)
    num_failed = sum(isinstance(answer, OutOfMemory) for answer in answers)
    print(f"{kind}, bits {bits}, out of memory every {every} steps: {num_failed} of 300 failed")
    print(f"peak {peak / 1e6:.2f} of {limit / 1e6:.2f} MB")
    assert peak <= limit
    assert (num_failed > 0) == (every is not None)
