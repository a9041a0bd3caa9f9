"""Padded chunks and warming up, as a device that prepares kernels for every shape has them; forced here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_backend.api.interface import (
    ContextConfig,
    EngineConfig,
    KVCacheConfig,
    LoadProgress,
    MemoryConfig,
    SchedulerConfig,
)
from mlx_backend.core.sequence import build_groups
from mlx_backend.engine.engine import DeviceEngine
from mlx_backend.planning.admission import Reservation
from mlx_backend.planning.chunk_sizes import padded_sizes
from mlx_backend.planning.memory import batch_bytes
from mlx_backend.runners import device, shapes
from mlx_backend.runners.mlx import MLXRunner
from tests.engine_client import one, request, running, tokens, until
from tests.tiny_models import VOCAB_SIZE, write_model

pytestmark = pytest.mark.mlx

PROMPTS = [tuple((7 * place + 3 * length) % 300 for place in range(length)) for length in (2, 9, 29, 100, 301)]
CACHES = {
    "llama": KVCacheConfig(),
    "llama, quantized": KVCacheConfig(bits=8, group_size=32, start=20),
    "deepseek_v3": KVCacheConfig(),
    "gpt_oss": KVCacheConfig(),
    "falcon_h1": KVCacheConfig(),
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder, written = tmp_path_factory.mktemp("models"), dict[str, Path]()

    def write(shape: str) -> Path:
        kind = shape.split(",")[0]
        changes = {"head_dim": 32} if "quantized" in shape else {}
        if shape not in written:
            written[shape] = write_model(folder / shape.replace(", ", "-"), kind, **changes)
        return written[shape]

    return write


def config(folder: Path, **sections: Any) -> EngineConfig:
    return EngineConfig(model_path=str(folder), **sections)


class Shapes:
    """A model of which every input's shape is noted."""

    def __init__(self, model: Any) -> None:
        self.model, self.seen = model, list[tuple[int, ...]]()

    def __call__(self, inputs: mx.array, cache: Any) -> Any:
        self.seen.append(inputs.shape)
        return self.model(inputs, cache=cache)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The device prepares kernels for every shape."""
    monkeypatch.setattr(device, "needs_warm_shapes", lambda: True)
    yield


async def answers(given: EngineConfig) -> tuple[list[list[int]], list[int]]:
    """The tokens of prompts one after the other and of all at once, and the sizes of the chunks' inputs."""
    async with running(given) as engine:
        runner: MLXRunner = engine._runner  # type: ignore[attr-defined]
        runner._model = noting = Shapes(runner._model)
        alone = [await one(engine, prompt, 6) for prompt in PROMPTS]
        streams = [engine.submit([request(prompt, 6)]) for prompt in PROMPTS]
        together = [(await asyncio.wait_for(tokens(stream), 120))[0] for stream in streams]
        return [*alone, *together], [shape[1] for shape in noting.seen if shape[1] > 1]


@pytest.mark.parametrize("shape", [*CACHES])
async def test_padded_prompts_get_the_same_tokens(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    given = config(folder_of(shape), kv_cache=CACHES[shape], scheduler=SchedulerConfig(max_chunk_tokens=96))
    expected, sizes = await answers(given)
    monkeypatch.setattr(device, "needs_warm_shapes", lambda: True)
    got, padded = await answers(given)
    assert got == expected
    if shape in ("gpt_oss", "falcon_h1"):  # a window that has turned and a state give up nothing
        assert not set(padded) <= set(padded_sizes(96))
    else:
        assert set(padded) <= set(padded_sizes(96)) and not set(sizes) <= set(padded_sizes(96))


@pytest.mark.parametrize(("length", "limit", "computed"), [(1101, None, [1536]), (1290, 1300, [1024, 276])])
def test_padding_stays_within_the_context_and_within_what_is_counted(
    folder_of: Callable[[str], Path],
    forced: None,
    monkeypatch: pytest.MonkeyPatch,
    length: int,
    limit: int | None,
    computed: list[int],
) -> None:
    monkeypatch.setattr(shapes.Warming, "run", lambda *given: 0)
    most = 2048 if limit is None else 1024
    given = config(
        folder_of("llama"), scheduler=SchedulerConfig(max_chunk_tokens=most), context=ContextConfig(limit=limit)
    )
    runner = MLXRunner(given)
    info = runner.load(lambda progress: None)
    assert info.pads_chunks and runner.budget is not None
    runner._model = noting = Shapes(runner._model)
    (group,) = build_groups([request((5,) * length, 0)])
    for start in range(0, length - 1, most):
        runner.prefill(group.chunk(start, min(start + most, length - 1)))
    assert [shape[1] for shape in noting.seen] == computed
    caches = runner._prompts[group.id].caches
    assert all(cache.offset == length - 1 for cache in caches)
    plans, claim = runner.budget.plans, Reservation(1, length, length)
    counted = runner.budget.held([claim]) - batch_bytes(plans, 1, length)
    assert sum(cache.nbytes for cache in caches) <= counted
    device.release(runner)


def warmed(given: EngineConfig, **bounds: float) -> tuple[list[tuple[int, ...]], list[LoadProgress]]:
    """The shapes of the inputs that a loaded model is warmed up with, and what is reported meanwhile."""
    runner, reports = MLXRunner(given), list[LoadProgress]()
    runner.load(reports.append)
    warming = runner._warming()
    warming._model = noting = Shapes(warming._model)
    reports.clear()
    done = warming.run(reports.append, 7, **bounds)
    assert len(reports) >= done and all(report.total_bytes == 7 for report in reports)
    device.release(runner)  # closing would end the streams of this thread
    return noting.seen, reports


def test_every_common_shape_is_computed_once_before_the_first_request(folder_of: Callable[[str], Path]) -> None:
    scheduler = SchedulerConfig(max_chunk_tokens=192, max_num_seqs=5)
    seen, reports = warmed(config(folder_of("llama"), scheduler=scheduler))
    assert {shape for shape in seen if shape[1] > 3} == {(1, size) for size in padded_sizes(192)}
    assert [shape[0] for shape in seen if shape[1] == 1] == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]
    assert [report.num_warmed for report in reports] == list(range(reports[0].num_to_warm))
    assert len(reports) == len(padded_sizes(192)) + 10 + 8


def test_warming_up_takes_no_longer_than_it_may_and_no_more_memory_than_there_is(
    folder_of: Callable[[str], Path],
) -> None:
    scheduler = SchedulerConfig(max_chunk_tokens=2048, max_num_seqs=64)
    assert warmed(config(folder_of("llama"), scheduler=scheduler), most_s=-1.0) == ([], [])
    tight = MemoryConfig(limit_gb=0.004, reserve_gb=0.0)
    seen, _ = warmed(config(folder_of("llama"), scheduler=scheduler, memory=tight))
    assert seen and max(shape[1] for shape in seen) < 2048 and max(shape[0] for shape in seen) < 64


def test_a_failure_while_warming_up_ends_it_and_nothing_else(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, forced: None
) -> None:
    monkeypatch.setattr(shapes.Warming, "_chunk", _fails)
    runner = MLXRunner(config(folder_of("llama")))
    assert runner.load(lambda progress: None).vocab_size == VOCAB_SIZE
    device.release(runner)  # closing would end the streams of this thread


def _fails(*given: Any) -> None:
    raise RuntimeError("no such kernel")


async def test_the_engine_says_so_and_is_ready_only_then(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, forced: None
) -> None:
    given, details = (
        config(folder_of("llama"), scheduler=SchedulerConfig(max_num_seqs=3, max_chunk_tokens=96)),
        list[str](),
    )
    engine = DeviceEngine(given, MLXRunner(given))
    report = engine._report_load

    def noting(progress: LoadProgress) -> None:
        report(progress)
        details.append(engine.health().detail)
        assert engine.model_info is None

    monkeypatch.setattr(engine, "_report_load", noting)
    engine.start()
    await until(lambda: engine.model_info is not None)
    assert details[0] == "the model is loading"
    assert any("warming up: 2 of" in detail for detail in details)
    engine.close()


def test_a_cpu_needs_none() -> None:
    assert mx.default_device() != mx.cpu or not device.needs_warm_shapes()
