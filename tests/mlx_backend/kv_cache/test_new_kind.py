"""A KV-cache kind is one file and one row: a made-up one, `joined_kind.py` and the row below, goes all the way."""

from __future__ import annotations

import ast
import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.models import llama

import mlx_backend
from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import EngineConfig, KVCacheConfig, MemoryConfig, PrefixCacheConfig, SchedulerConfig
from mlx_backend.kv_cache import spec
from mlx_backend.kv_cache.handler import CacheHandler
from mlx_backend.kv_cache.plan import CachePlan, plan_caches
from mlx_backend.model.skeleton import from_config
from mlx_backend.planning.memory import batch_bytes, kv_bytes, prefill_bytes
from tests.engine_client import one, read, request, running
from tests.mlx_backend.kv_cache import joined_kind
from tests.tiny_models import COMMON, CONFIGS, VOCAB_SIZE, write_model

pytestmark = pytest.mark.mlx

LLAMA = {**COMMON, **CONFIGS["llama"]}
NUM_OUTPUT = 20


@pytest.fixture
def _with_joined_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every Llama model make caches of the made-up class."""

    def make_cache(model: Any) -> list[Any]:
        return [joined_kind.JoinedCache() for _ in model.layers]

    monkeypatch.setattr(llama.Model, "make_cache", make_cache, raising=False)


@pytest.fixture(params=["by the token", "as snapshots"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, _with_joined_caches: None) -> str:
    """The way in which the row lets the prefix cache keep it."""
    row = spec.CacheKind(
        name="joined",
        cache_classes=("JoinedCache",),
        module=joined_kind.__name__,
        is_batched=True,
        is_cut=request.param == "by the token",
    )
    monkeypatch.setitem(spec.KINDS, row.name, row)
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    return EngineConfig(
        model_path=str(write_model(tmp_path_factory.mktemp("models") / "llama", "llama")),
        memory=MemoryConfig(limit_gb=1.0),
        scheduler=SchedulerConfig(max_chunk_tokens=50),
        prefix_cache=PrefixCacheConfig(chunk_tokens=16, snapshot_tokens=48),
    )


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    source = random.Random(seed)
    return tuple(source.randrange(1, VOCAB_SIZE) for _ in range(length))


async def plain_answers(config: EngineConfig, *prompts: tuple[int, ...]) -> list[list[int]]:
    """The answers with mlx-lm's own caches and no prefix cache, one prompt at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(llama.Model, "make_cache", raising=False)
        async with running(replace(config, prefix_cache=PrefixCacheConfig(enabled=False))) as engine:
            assert engine.model_info is not None
            assert [cache.kind for cache in engine.model_info.kv_caches] == ["plain"]
            return [await one(engine, each, NUM_OUTPUT) for each in prompts]


def test_its_shape_is_measured_and_its_memory_planned(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = from_config(LLAMA)
    monkeypatch.delattr(llama.Model, "make_cache")
    plain = from_config(LLAMA)
    assert {shape.kind for shape in joined.caches} == {"joined"}
    assert joined.caches == tuple(replace(shape, kind="joined") for shape in plain.caches)
    assert joined.shape == plain.shape
    plans, expected = (plan_caches(skeleton.caches, KVCacheConfig()) for skeleton in (joined, plain))
    assert plans == tuple(CachePlan(shape) for shape in joined.caches)
    assert kv_bytes(plans, 1000, 3) == kv_bytes(expected, 1000, 3) > 0
    assert batch_bytes(plans, 5, 1000) == batch_bytes(expected, 5, 1000) > 0
    assert prefill_bytes(joined.shape, plans, 64, 1000) == prefill_bytes(plain.shape, expected, 64, 1000)
    with pytest.raises(ModelLoadError, match=r"a kind that cannot be quantized \(joined\)"):
        plan_caches(joined.caches, KVCacheConfig(bits=8))


async def test_its_rows_are_batched(kind: str, config: EngineConfig) -> None:
    prompts = [prompt(length, seed=length) for length in (1, 70, 9, 130)]
    expected = await plain_answers(config, *prompts)
    async with running(config) as engine:
        info = engine.model_info
        assert info is not None and info.is_batched
        assert [(cache.kind, cache.num_layers) for cache in info.kv_caches] == [("joined", 2)]
        streams = [engine.submit([request(each, NUM_OUTPUT)]) for each in prompts]
        answers = await asyncio.gather(*(read(stream) for stream in streams))
    assert [[event.token_id for event in answer[0]] for answer in answers] == expected


async def test_it_is_stored_in_the_prefix_cache_and_restored(kind: str, config: EngineConfig, tmp_path: Path) -> None:
    ids = prompt(203)
    (answer,) = await plain_answers(config, ids)
    longer = (*ids, *answer, *prompt(20, seed=2))
    parted = ids[:130] + prompt(60, seed=1)
    expected = [answer, *await plain_answers(config, longer, parted)]
    on_disk = replace(config, prefix_cache=replace(config.prefix_cache, dir=str(tmp_path)))

    async def asked(*prompts: tuple[int, ...]) -> list[tuple[list[int], int]]:
        """Return every answer, and how many tokens of its prompt were not computed."""
        found = []
        async with running(on_disk) as engine:
            assert engine.model_info is not None
            assert engine.model_info.prefix_cache.kinds == (("joined", kind),)
            for each in prompts:
                stream = engine.submit([request(each, NUM_OUTPUT)])
                events = await read(stream)
                found.append(([event.token_id for event in events[0]], stream.num_cached_tokens))
        return found

    cached = [0, len(ids) + len(answer) - 1, 130 if kind == "by the token" else 96]
    assert await asked(ids, longer, parted) == list(zip(expected, cached, strict=True))
    cached[0] = len(ids) - 1
    assert (await asked(ids))[0] == (answer, cached[0])


@pytest.mark.usefixtures("_with_joined_caches")
async def test_without_its_row_it_is_served_one_at_a_time(config: EngineConfig) -> None:
    async with running(config) as engine:
        assert engine.model_info is not None
        assert "a kind that cannot be batched (JoinedCache)" in (engine.model_info.unbatched_reason or "")


def test_every_row_has_a_handler_for_what_it_claims() -> None:
    """The methods of `CacheHandler` that a row's traits call for are its own."""
    needed = {
        "is_quantizable": ["build_quantized"],
        "is_cut": ["segments", "segment_arrays", "set_array", "set_length"],
    }
    for kind in spec.KINDS.values():
        methods = ["read_shape", *(name for trait, names in needed.items() if getattr(kind, trait) for name in names)]
        if kind.is_batched:
            methods.append("build_states" if kind.is_state else "build_rows")
        if kind.is_batched and not kind.is_cut:
            methods += ["take_snapshot", "restore_snapshot"]
        missing = [name for name in methods if getattr(type(kind.handler), name) is getattr(CacheHandler, name)]
        assert not missing, kind.name


def test_no_other_source_tells_kinds_apart_by_name() -> None:
    root = Path(mlx_backend.__file__).parent
    names = {*spec.KINDS, *(each for kind in spec.KINDS.values() for each in kind.cache_classes)}
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert found == {"kv_cache/spec.py", "acceptance/tiny.py", "runners/mock.py"}  # the mock makes up a cache
