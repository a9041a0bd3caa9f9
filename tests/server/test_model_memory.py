"""Two MLX models under a limit that holds one: memory is back after unloading, and answers are the same each time."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import re
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest

from mlx_backend.api.interface import EngineConfig, MemoryConfig
from mlx_backend.factory import estimate_footprint
from server.app import create_app
from server.config import Config
from server.config_models import ModelEntry
from server.models import build_models
from server.service.registry import ModelRegistry
from tests.tiny_models import write_served_model

pytestmark = pytest.mark.mlx

WARM_UP, ROUNDS = 2, 6
SIZES = {"hidden_size": 256, "intermediate_size": 1024}


def rss_bytes() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * 1024


def write_config(folder: Path) -> tuple[Config, int]:
    """Two models, a limit that has room for one of them, and the bytes of the smaller one's weights."""
    for name, num_layers in (("a", 4), ("b", 5)):
        write_served_model(folder / name, "llama", num_hidden_layers=num_layers, **SIZES)
    prints = [estimate_footprint(EngineConfig(model_path=str(folder / name))) for name in "ab"]
    limit = max(each.wanted_bytes for each in prints) + 1_000_000
    assert sum(each.wanted_bytes for each in prints) > limit
    entries = tuple(ModelEntry(name=name, model=str(folder / name)) for name in "ab")
    return Config(models=entries, memory=MemoryConfig(limit_gb=limit / 1e9)), prints[0].weights_bytes


async def ask(client: httpx.AsyncClient, model: str) -> str:
    body = {"model": model, "prompt": "once upon a time there", "max_tokens": 8, "temperature": 0}
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


async def states(client: httpx.AsyncClient) -> dict[str, str]:
    return {model["id"]: model["state"] for model in (await client.get("/admin/models")).json()["data"]}


@dataclass
class Rounds:
    """What was seen in rounds of loading one model and then the other: bytes, and the answers by model."""

    weights_bytes: int
    before: int
    threads: int
    answers: dict[str, set[str]] = field(default_factory=lambda: {"a": set(), "b": set()})
    active: list[int] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    after: int = 0
    threads_after: int = 0


async def take_turns(folder: Path) -> Rounds:
    import mlx.core as mx

    config, weights_bytes = write_config(folder)
    gc.collect()
    mx.clear_cache()
    found = Rounds(weights_bytes, mx.get_active_memory(), threading.active_count())
    registry = ModelRegistry(build_models(config))
    app = create_app(config, registry)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        for _ in range(ROUNDS):
            for name, other in (("a", "b"), ("b", "a")):
                found.answers[name].add(await ask(client, name))
                assert await states(client) == {name: "loaded", other: "unloaded"}
            found.active.append(mx.get_active_memory())
            found.resident.append(rss_bytes() if sys.platform == "linux" else 0)
        assert (await client.post("/admin/models/b/unload")).json()["state"] == "unloaded"
    await registry.close()
    gc.collect()
    mx.clear_cache()
    found.after, found.threads_after = mx.get_active_memory(), threading.active_count()
    return found


def in_rounds(folder: Path) -> Rounds:
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    return asyncio.run(take_turns(folder))


def test_memory_is_back_and_answers_are_equal(tmp_path: Path) -> None:
    """In a process of its own: what other tests have left in this one's heap is no part of the figure."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(in_rounds, tmp_path).result()
    weights_bytes, active, resident = found.weights_bytes, found.active, found.resident
    assert {name: len(texts) for name, texts in found.answers.items()} == {"a": 1, "b": 1}
    assert max(active) - found.before < 2 * weights_bytes  # one model at a time
    assert max(active[WARM_UP:]) - min(active[WARM_UP:]) < weights_bytes // 10
    assert max(resident[WARM_UP:]) - resident[WARM_UP] < weights_bytes
    assert found.after - found.before < 100_000
    assert found.threads_after <= found.threads + 2  # what is left belongs to the event loop


async def test_two_models_in_memory_compute_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config, _ = write_config(tmp_path)
    config = replace(config, memory=MemoryConfig(limit_gb=1.0))
    registry = ModelRegistry(build_models(config))
    transport = httpx.ASGITransport(create_app(config, registry))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        alone = {name: await ask(client, name) for name in "ab"}
        together = await asyncio.gather(*(ask(client, "ab"[i % 2]) for i in range(12)))
        assert await states(client) == {"a": "loaded", "b": "loaded"}
        shares = [model["memory_bytes"] for model in (await client.get("/admin/models")).json()["data"]]
    await registry.close()
    assert sum(shares) == 10**9
    assert [set(together[i::2]) for i in range(2)] == [{alone["a"]}, {alone["b"]}]
