"""The MLX runner inside the engine: failures, memory, limits, the self-check."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import base
from mlx_lm.models.cache import make_prompt_cache

from mlx_backend.api.errors import ModelLoadError, OutOfMemory, SequenceFailed
from mlx_backend.api.interface import (
    ContextConfig,
    Engine,
    EngineConfig,
    KVCacheConfig,
    MemoryConfig,
    SamplingParams,
    SchedulerConfig,
)
from mlx_backend.core.row import Row
from mlx_backend.core.sequence import build_groups
from mlx_backend.kv_cache import attention, latent_attention
from mlx_backend.kv_cache.batch import RowBatch
from mlx_backend.kv_cache.groups import GroupedColumns
from mlx_backend.kv_cache.plan import CachePlan
from mlx_backend.kv_cache.quantized import QuantizedKV
from mlx_backend.runners import device
from mlx_backend.runners.mlx import MLXRunner
from mlx_backend.runners.probe import check_batching
from tests.engine_client import one, read, request, running, tokens, until
from tests.tiny_models import VOCAB_SIZE, write_model

pytestmark = pytest.mark.mlx

PROMPT = tuple(range(1, 30))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama", "llama")


def config(folder: Path, **sections: Any) -> EngineConfig:
    return EngineConfig(model_path=str(folder), **sections)


def runner_of(engine: Engine) -> MLXRunner:
    return engine._runner  # type: ignore[attr-defined]


class Raising:
    """A model that raises for some calls, and otherwise is the real one."""

    def __init__(self, model: Any, error: Exception, when: Any) -> None:
        self.model, self.error, self.when = model, error, when

    def __call__(self, inputs: Any, cache: Any) -> Any:
        if self.when(inputs):
            raise self.error
        return self.model(inputs, cache=cache)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


async def test_a_prefill_that_fails_fails_its_request_alone(folder: Path) -> None:
    async with running(config(folder)) as engine:
        expected = await one(engine, PROMPT, 60)
        runner = runner_of(engine)
        bad = RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory")
        runner._model = Raising(runner._model, bad, lambda inputs: 299 in inputs.tolist()[0])
        good = [engine.submit([request(PROMPT, 60)]) for _ in range(3)]
        doomed = engine.submit([request((299,) * 20, 5)])
        with pytest.raises(OutOfMemory, match="prefill"):
            await tokens(doomed)
        assert [await tokens(stream) for stream in good] == [[expected]] * 3
        assert engine.health().status == "ok"


async def test_a_decode_step_that_fails_fails_its_rows_and_the_next_are_served(folder: Path) -> None:
    async with running(config(folder)) as engine:
        expected = await one(engine, PROMPT, 20)
        runner = runner_of(engine)
        healthy = runner._model
        calls = iter(range(10**6))
        runner._model = Raising(healthy, ValueError("broken"), lambda i: i.shape[1] == 1 and next(calls) == 5)
        streams = [engine.submit([request(PROMPT, 40)]) for _ in range(2)]
        results = await asyncio.gather(*(tokens(stream) for stream in streams), return_exceptions=True)
        assert any(isinstance(result, SequenceFailed) for result in results)
        assert await one(engine, PROMPT, 20) == expected
        await until(lambda: engine.stats().kv_bytes == 0)


@pytest.mark.parametrize("bits", [None, 8])
def test_a_chunk_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int | None) -> None:
    """Not in every layer, nor for every few heads of quantized columns; and spare buffers stay for the next."""
    wide = write_model(tmp_path / "wide", "llama", head_dim=32)
    runner = MLXRunner(config(wide, kv_cache=KVCacheConfig(bits=bits, group_size=bits and 32)))
    runner.load(lambda progress: None)
    (group,) = build_groups([request(PROMPT * 3, 2)])
    waits: list[str] = []

    def noting(name: str, real: Any) -> Any:
        def call(*given: Any) -> None:
            waits.append(name)
            real(*given)

        return call

    for name in ("eval", "synchronize", "clear_cache"):
        monkeypatch.setattr(mx, name, noting(name, getattr(mx, name)))
    monkeypatch.setattr(attention, "_MAX_SHADOW_BYTES", 100)
    for start in (0, 32):
        runner.prefill(group.chunk(start, start + 32))
    assert waits == ["eval", "eval"]
    device.release(runner)


async def test_memory_is_back_after_many_aborts(folder: Path) -> None:
    source = random.Random(3)
    async with running(config(folder)) as engine:
        limit = mx.set_cache_limit(0)  # a spare buffer that is used again may be larger than what it is used for
        mx.clear_cache()
        expected = await one(engine, PROMPT, 20)
        await until(lambda: engine.stats().kv_bytes == 0)
        before = mx.get_active_memory()

        async def come_and_go() -> None:
            prompt = [source.randrange(1, VOCAB_SIZE) for _ in range(source.randint(1, 400))]
            stream = engine.submit([request(prompt, 200, n=source.randint(1, 3))])
            for _ in range(source.randint(0, 5)):
                await anext(aiter(stream))
            await stream.aclose()

        for _ in range(10):
            await asyncio.gather(*(come_and_go() for _ in range(10)))
        await until(lambda: engine.stats().kv_bytes == 0)
        stats = engine.stats()
        assert (stats.num_waiting, stats.num_prefilling, stats.num_running) == (0, 0, 0)
        assert await one(engine, PROMPT, 20) == expected
        await until(lambda: engine.stats().kv_bytes == 0)
        kept = engine.stats().prefix_cache
        kept_bytes = kept.ram_bytes + 1024 * kept.num_ram_blocks  # small arrays are rounded up
        await until(lambda: mx.get_active_memory() <= before + kept_bytes + 65536)
        mx.set_cache_limit(limit)


async def test_a_row_that_left_is_let_go_of_while_a_prompt_is_computed(folder: Path) -> None:
    async with running(config(folder, scheduler=SchedulerConfig(max_chunk_tokens=1))) as engine:
        stream = engine.submit([request(PROMPT, 200)])
        await anext(aiter(stream))
        long = engine.submit([request((5,) * 1900, 1)])
        await stream.aclose()
        await until(lambda: engine.stats().num_prefilling == 1 and engine.stats().num_running == 0)
        await until(lambda: len(runner_of(engine)._batch.rows) == 0)
        assert engine.stats().num_prefilling == 1
        await long.aclose()


async def test_logprobs_only_for_those_who_asked(folder: Path) -> None:
    asking = SamplingParams(temperature=0, num_logprobs=4)
    async with running(config(folder)) as engine:
        events = await read(engine.submit([request(PROMPT, 5, sampling=asking), request(PROMPT, 5)]))
        assert all(event.logprobs is None for event in events[1])
        for event in events[0]:
            assert event.logprobs is not None
            assert len(event.logprobs.top) == 4
            assert event.logprobs.top[0][0] == event.token_id
            assert event.logprobs.top[0][1] == pytest.approx(event.logprobs.logprob)
            assert event.logprobs.logprob < 0


async def test_the_context_limit_is_the_smaller_one(folder: Path) -> None:
    async with running(config(folder, context=ContextConfig(limit=100))) as engine:
        assert engine.model_info is not None
        assert engine.model_info.context_limit == 100
    async with running(config(folder)) as engine:
        assert engine.model_info is not None
        assert engine.model_info.context_limit == 2048
    async with running(config(folder, context=ContextConfig(limit=4096))) as engine:
        assert isinstance(engine.failure, ModelLoadError)
        assert "more than the model's own 2048" in str(engine.failure)


async def test_a_refusal_comes_before_the_weights_are_read(folder: Path) -> None:
    seen: list[object] = []
    runner = MLXRunner(config(folder, kv_cache=KVCacheConfig(bits=8)))
    with pytest.raises(ModelLoadError, match="does not divide this model's heads of 16"):
        runner.load(seen.append)
    assert seen == []


def quantized_runner(folder: Path, **kv: int) -> MLXRunner:
    runner = MLXRunner(config(folder, kv_cache=KVCacheConfig(**kv)))
    runner.load(lambda progress: None)
    return runner


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("llama", {"head_dim": 64}),
        ("deepseek_v3", {"kv_lora_rank": 64, "qk_rope_head_dim": 32}),
        ("gpt_oss", {"head_dim": 64}),
        ("gemma3", {"head_dim": 64}),
        ("falcon_h1", {"head_dim": 64}),
    ],
)
def test_the_bytes_held_are_those_that_were_planned(
    tmp_path: Path, model: str, changes: dict[str, int], bits: int
) -> None:
    """One sequence of 256 tokens, the step in which columns are allocated; rows of it then hold the same."""
    runner = quantized_runner(write_model(tmp_path / model, model, **changes), bits=bits, group_size=64)
    caches = runner._make_caches()
    inputs = mx.ones((1, 256), dtype=mx.int32)
    runner._model(inputs, cache=caches)
    mx.eval([cache.state for cache in caches])
    planned = sum(
        each.bytes_per_token * min(each.shape.window or 256, 256) + each.shape.state_bytes for each in runner._plans
    )
    assert sum(cache.nbytes for cache in caches) == planned
    full = make_prompt_cache(runner._model)
    runner._model(inputs, cache=full)
    if model != "gpt_oss":  # mlx-lm's own window cache holds more than its window after a chunk
        unquantized = sum(
            CachePlan(each.shape).bytes_per_token * 256 + each.shape.state_bytes for each in runner._plans
        )
        assert sum(cache.nbytes for cache in full) >= unquantized > planned
    batch = RowBatch(runner._make_caches())
    (sequence,) = build_groups([request(tuple(range(256)), 1)])[0].sequences
    batch.set_rows([Row.of(sequence.row(0), caches)])
    runner._model(mx.ones((1, 1), dtype=mx.int32), cache=batch.caches)
    assert batch.nbytes < 2.2 * planned


@pytest.mark.parametrize("start", [1, 40, 300])
def test_the_first_tokens_take_their_full_bytes(tmp_path: Path, start: int) -> None:
    folder = write_model(tmp_path / "llama", "llama", head_dim=64)
    runner = quantized_runner(folder, bits=8, start=start)
    caches = runner._make_caches()
    runner._model(mx.ones((1, 256 + start), dtype=mx.int32), cache=caches)
    full = sum(CachePlan(each.shape).bytes_per_token for each in runner._plans)
    assert sum(cache.nbytes for cache in caches) == start * full + 256 * sum(e.bytes_per_token for e in runner._plans)


def test_quantized_columns_that_a_model_does_not_take_are_dequantized_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_lm.models import llama

    def meddling(queries: Any, keys: Any, *others: Any, **options: Any) -> Any:
        return attention.attend(queries, keys + 0, *others, **options)

    monkeypatch.setattr(attention, "install", lambda: monkeypatch.setattr(llama, attention._NAME, meddling))
    runner = MLXRunner(config(write_model(tmp_path / "llama", "llama", head_dim=64), kv_cache=KVCacheConfig(bits=8)))
    info = runner.load(lambda progress: None)
    assert "computes with keys or values itself" in (info.dequantized_reason or "")
    assert info.is_batched
    runner._model(mx.ones((1, 5), dtype=mx.int32), cache=runner._make_caches())


@pytest.mark.parametrize(
    ("meddle", "reason"),
    [
        (lambda keys, mask: (keys + 0, mask), "computes with keys, values or masks itself (TypeError"),
        (lambda keys, mask: (keys, None), "rows in groups change its logits"),
    ],
)
def test_a_model_that_does_not_take_groups_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meddle: Any, reason: str
) -> None:
    from mlx_lm.models import llama

    def meddling(queries: Any, keys: Any, values: Any, mask: Any, **options: Any) -> Any:
        if isinstance(keys, GroupedColumns):
            keys, mask = meddle(keys, mask)
        return attention.attend(queries, keys, values, mask=mask, **options)

    monkeypatch.setattr(attention, "install", lambda: monkeypatch.setattr(llama, attention._NAME, meddling))
    runner = MLXRunner(config(write_model(tmp_path / "llama", "llama"), memory=MemoryConfig(limit_gb=1.0)))
    info = runner.load(lambda progress: None)
    assert reason in (info.ungrouped_reason or "")
    assert info.is_batched
    assert runner.budget is not None and runner.budget.max_groups == 1
    batch = runner._make_batch()
    assert isinstance(batch, RowBatch) and batch._max_groups == 1


def test_a_model_that_takes_neither_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm.models import llama

    def broken(*parts: Any, cache: Any, **options: Any) -> Any:
        if isinstance(cache, QuantizedKV):
            raise TypeError("no such cache")
        return base.scaled_dot_product_attention(*parts, cache=cache, **options)

    monkeypatch.setattr(attention, "install", lambda: monkeypatch.setattr(llama, attention._NAME, broken))
    with pytest.raises(ModelLoadError, match=r"does not take a quantized KV cache \(TypeError: no such cache\); leave"):
        quantized_runner(write_model(tmp_path / "llama", "llama", head_dim=64), bits=8)


async def test_a_long_prompt_does_not_stop_a_running_stream(folder: Path) -> None:
    scheduler = SchedulerConfig(max_stall_s=0.01, max_chunk_tokens=100)  # 19 chunks, however fast they are
    async with running(config(folder, scheduler=scheduler)) as engine:
        short = engine.submit([request(PROMPT, 2000)])
        await anext(aiter(short))
        long = asyncio.create_task(read(engine.submit([request((5,) * 1900, 1)])))
        num_tokens = 0
        async for events in short:
            num_tokens += len(events)
            if long.done():
                break
        assert num_tokens > 5
        await short.aclose()
        await long


class Ignorant:
    """A model whose code takes the batch for one sequence: every row gets the first row's position."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.layers = model.layers

    def __call__(self, inputs: Any, cache: Any) -> Any:
        if inputs.shape[0] > 1:
            inputs = mx.broadcast_to(inputs[:1], inputs.shape)
        return self.model(inputs, cache=cache)


def test_the_self_check_finds_a_model_that_cannot_be_batched(folder: Path) -> None:
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    make = partial(make_prompt_cache, model)
    assert check_batching(model, make, VOCAB_SIZE) is None
    assert "changes its logits" in (check_batching(Ignorant(model), make, VOCAB_SIZE) or "")
    broken = Raising(model, TypeError("an int is required"), lambda inputs: inputs.shape[0] > 1)
    assert "an int is required" in (check_batching(broken, make, VOCAB_SIZE) or "")


def test_attention_over_latents_in_groups_is_checked_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes the logits is not used, is said, and is planned for."""
    given = config(write_model(tmp_path / "deepseek", "deepseek_v3"))
    runner = MLXRunner(given)
    good = runner.load(lambda progress: None)
    assert good.whole_heads_reason is None
    assert runner.budget is not None and runner.budget.shape.attention is not None
    assert runner.budget.shape.attention.is_grouped
    whole = latent_attention._attend_absorbed
    monkeypatch.setattr(latent_attention, "_attend_absorbed", lambda *given: 0 * whole(*given))
    wary = MLXRunner(given)
    info = wary.load(lambda progress: None)
    assert "its logits change" in (info.whole_heads_reason or "")
    assert wary.budget is not None and wary.budget.shape.attention is not None
    assert not wary.budget.shape.attention.is_grouped
    caches = [each._make_caches() for each in (runner, wary)]
    monkeypatch.undo()
    logits = [each._model(mx.array([PROMPT]), cache=made) for each, made in zip((runner, wary), caches, strict=True)]
    assert mx.allclose(*logits, atol=1e-3)
