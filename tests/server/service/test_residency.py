"""Several models: loaded when asked for, unloaded when idle or for room, never while a request holds them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mlx_backend.api.errors import EngineDead, EngineNotReady, ModelLoadError
from mlx_backend.api.interface import (
    Engine,
    EngineConfig,
    Footprint,
    LoadProgress,
    MemoryConfig,
    MemoryShare,
    MockConfig,
)
from mlx_backend.factory import create_engine, estimate_footprint
from server.service import residency as residency_module
from server.service.model_instance import Recipe, Report
from server.service.registry import ModelRegistry, ServedModel
from server.text.tokenizer import ByteTokenizer

ONE = 0.0014
"""GB in which one mock fits with room for a request, and two do not."""
BOTH = 0.004


class Watch:
    """Writes down who came and went."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def loading(self, model: ServedModel) -> None:
        self.events.append(f"+{model.id}")

    def unloaded(self, model: ServedModel) -> None:
        self.events.append(f"-{model.id}")


def mock_model(id: str, limit_gb: float | None = ONE, fault: str | None = None, **options: Any) -> ServedModel:
    config = EngineConfig(
        model_path="mock", backend="mock", memory=MemoryConfig(limit_gb=limit_gb), mock=MockConfig(fault=fault)
    )

    def build(share: MemoryShare | None) -> Engine:
        return create_engine(EngineConfig(**{**_fields(config), "share": share}))

    options = {"is_required": False, "is_pinned": False, **options}
    check = options.pop("check", None)
    recipe = Recipe(build_engine=options.pop("build", build), load_tokenizer=ByteTokenizer, check=check)
    return ServedModel(
        id, None, ByteTokenizer, recipe=recipe, estimate_footprint=lambda: estimate_footprint(config), **options
    )


def _fields(config: EngineConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("model_path", "backend", "memory", "mock")}


@asynccontextmanager
async def served(*models: ServedModel, **options: Any) -> AsyncIterator[tuple[ModelRegistry, list[str]]]:
    watch = Watch()
    registry = ModelRegistry(models, watch, **options)
    registry.start()
    try:
        yield registry, watch.events
    finally:
        await registry.close()


def state(registry: ModelRegistry, name: str) -> str:
    return registry.resolve(name).state


async def touch(registry: ModelRegistry, name: str) -> None:
    async with registry.use(name) as model:
        model.ready()


async def until(condition: Any) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_request_loads_its_model_and_waits_for_it() -> None:
    async with served(mock_model("a"), mock_model("b")) as (registry, events):
        assert [model.state for model in registry.list()] == ["unloaded", "unloaded"]
        await asyncio.gather(*(touch(registry, "a") for _ in range(5)))
        assert [model.state for model in registry.list()] == ["loaded", "unloaded"]
        assert events == ["+a"]


async def test_where_one_fits_the_other_goes() -> None:
    async with served(mock_model("a"), mock_model("b")) as (registry, events):
        for name in ("a", "b", "a", "a"):
            await touch(registry, name)
        assert events == ["+a", "-a", "+b", "-b", "+a"]


async def test_where_both_fit_both_stay_and_share_the_limit() -> None:
    async with served(mock_model("a", BOTH), mock_model("b", BOTH)) as (registry, events):
        for name in ("a", "b", "a"):
            await touch(registry, name)
        assert events == ["+a", "+b"]
        shares = [model.share for model in registry.list()]
        assert sum(share.share_bytes for share in shares if share) == round(BOTH * 1e9)
        infos = [model.engine.model_info for model in registry.list()]
        assert [i.memory.limit_bytes for i in infos if i and i.memory] == [s.share_bytes for s in shares if s]


async def test_the_least_recently_used_goes_first() -> None:
    models = [mock_model(name, 0.0029) for name in "abc"]
    async with served(*models) as (registry, events):
        for name in ("a", "b", "a", "c"):
            await touch(registry, name)
        assert events == ["+a", "+b", "-b", "+c"]


async def test_a_model_with_a_request_is_waited_for_and_who_comes_later_has_it_loaded_again() -> None:
    async with served(mock_model("a"), mock_model("b")) as (registry, events):
        running = await registry.acquire("a")
        wants_b = asyncio.create_task(touch(registry, "b"))
        await until(lambda: running.model.is_leaving)
        assert running.model.state == "unloading"
        wants_a = asyncio.create_task(touch(registry, "a"))
        await asyncio.sleep(0.05)
        assert events == ["+a"] and not wants_b.done() and not wants_a.done()
        running.model.ready()  # it is served to its end
        running.release()
        await asyncio.gather(wants_b, wants_a)
        assert events == ["+a", "-a", "+b", "-b", "+a"]


async def test_a_waiting_request_has_its_model_before_another_may_take_its_place() -> None:
    """Two models that push each other out: everybody is served."""
    async with served(mock_model("a"), mock_model("b")) as (registry, _):
        await asyncio.gather(*(touch(registry, "ab"[i % 2]) for i in range(20)))


async def test_a_pinned_model_is_loaded_at_the_start_and_stays() -> None:
    pinned = mock_model("a", 0.0016, is_required=True, is_pinned=True)
    async with served(pinned, mock_model("b", 0.0016)) as (registry, events):
        assert state(registry, "a") == "loading"
        with pytest.raises(EngineNotReady):
            pinned.ready()
        await until(lambda: pinned.state == "loaded")
        with pytest.raises(ModelLoadError, match=r"'b' does not fit: .* \([\d,]+ bytes\) .* pinned models hold"):
            await touch(registry, "b")
        assert (events, registry.resolve("b").state) == (["+a"], "failed")


async def test_what_can_never_fit_is_told_in_bytes_and_nobody_goes_for_it() -> None:
    large = mock_model("large")
    large.estimate_footprint = lambda: Footprint(
        weights_bytes=2 * 10**9, least_bytes=3 * 10**9, wanted_bytes=3 * 10**9, limit_bytes=round(ONE * 1e9)
    )
    async with served(mock_model("a"), large) as (registry, events):
        await touch(registry, "a")
        with pytest.raises(ModelLoadError, match=r"at least .*\(3,000,000,000 bytes\) .* use .*\(1,400,000 bytes"):
            await touch(registry, "large")
        assert events == ["+a"]


async def test_idle_for_its_time_a_model_goes() -> None:
    model = mock_model("a", keep_alive_s=0.1)
    async with served(model, mock_model("b")) as (registry, events):
        lease = await registry.acquire("a")
        await asyncio.sleep(0.3)
        assert state(registry, "a") == "loaded"  # somebody uses it
        lease.release()
        await until(lambda: model.state == "unloaded")
        assert events == ["+a", "-a"]


async def test_load_and_unload_are_idempotent() -> None:
    async with served(mock_model("a"), mock_model("b")) as (registry, events):
        model = registry.resolve("a")
        for _ in range(2):
            await registry.residency.load(model)
        for _ in range(2):
            await registry.residency.unload(model)
        assert (events, model.state) == (["+a", "-a"], "unloaded")
        assert model.info is not None and model.engine.model_info is None


async def test_unloading_waits_unless_by_force() -> None:
    async with served(mock_model("a"), mock_model("b")) as (registry, _):
        lease = await registry.acquire("a")
        unloading = asyncio.create_task(registry.residency.unload(lease.model))
        await until(lambda: lease.model.is_leaving)
        assert not unloading.done()
        forced = asyncio.create_task(registry.residency.unload(lease.model, by_force=True))
        await until(lambda: lease.model.engine.health().status == "ok" and lease.model.state == "unloading")
        lease.release()  # as a stream does that fails
        await asyncio.gather(unloading, forced)
        assert lease.model.state == "unloaded"


async def test_a_failed_load_is_told_and_not_tried_by_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def build(_: MemoryShare | None) -> Engine:
        tries.append(1)
        raise ModelLoadError("it is broken")

    async with served(mock_model("a", build=build), mock_model("b")) as (registry, _):
        for _ in range(3):
            with pytest.raises(ModelLoadError, match="it is broken"):
                await touch(registry, "a")
        assert (len(tries), registry.resolve("a").state) == (1, "failed")
        with pytest.raises(ModelLoadError):
            await registry.residency.load(registry.resolve("a"))
        assert len(tries) == 2
        monkeypatch.setattr(residency_module, "RETRY_S", 0.0)
        with pytest.raises(ModelLoadError):
            await touch(registry, "a")
        assert len(tries) == 3
        await touch(registry, "b")


async def test_a_damaged_file_is_told_before_an_engine_is_built() -> None:
    def check(report: Report) -> None:
        report(LoadProgress(done_bytes=1, total_bytes=2))
        raise ModelLoadError("x.safetensors is damaged")

    def build(_: MemoryShare | None) -> Engine:
        raise AssertionError("not to be built")

    async with served(mock_model("a", check=check, build=build), mock_model("b")) as (registry, _):
        with pytest.raises(ModelLoadError, match=r"x\.safetensors is damaged"):
            await touch(registry, "a")


async def test_a_death_is_buried_and_the_model_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_backend.api.interface import GenerationRequest

    model = mock_model("a", fault="die@1")
    async with served(model, mock_model("b")) as (registry, events):
        async with registry.use("a"):
            stream = model.engine.submit([GenerationRequest(request_id="x", prompt_ids=(1, 2), max_tokens=4)])
            with pytest.raises(EngineDead):
                [batch async for batch in stream]
        await until(lambda: not model.is_present)
        assert (model.state, model.share) == ("failed", None)
        with pytest.raises(EngineDead, match="told to kill"):
            await touch(registry, "a")
        monkeypatch.setattr(residency_module, "RETRY_S", 0.0)
        await touch(registry, "a")
        assert events == ["+a", "-a", "+a"]


async def test_who_gives_up_waiting_holds_nothing() -> None:
    async with served(mock_model("a"), mock_model("b"), load_wait_s=0.05) as (registry, _):
        lease = await registry.acquire("a")
        with pytest.raises(EngineNotReady, match="'b' is still loading"):
            await touch(registry, "b")
        gone = asyncio.create_task(touch(registry, "b"))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        lease.release()
        await until(lambda: registry.resolve("b").state == "loaded")
        assert [model.num_users for model in registry.list()] == [0, 0]


async def test_the_end_does_not_wait_for_who_waits() -> None:
    async with served(mock_model("a"), mock_model("b")) as (registry, _):
        lease = await registry.acquire("a")
        waiting = asyncio.create_task(touch(registry, "b"))
        await until(lambda: lease.model.is_leaving)
        await registry.close()
        with pytest.raises(EngineDead, match="shutting down"):
            await waiting


async def test_who_gives_up_just_as_the_model_comes_holds_nothing() -> None:
    async with served(mock_model("a"), mock_model("b")) as (registry, _):
        waiting = asyncio.create_task(registry.acquire("a"))
        await asyncio.sleep(0)
        registry.residency._loads["a"].task.add_done_callback(lambda _: waiting.cancel())
        with contextlib.suppress(asyncio.CancelledError):
            (await waiting).release()  # Python 3.11 prefers the result, later ones the cancellation
        assert (state(registry, "a"), registry.resolve("a").num_users) == ("loaded", 0)


async def test_who_is_told_too_late_that_the_model_has_come_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted among those who use the model from the moment at which that is loaded."""

    async def leaves_at_the_end(awaitable: Any, timeout: float) -> None:
        await awaitable
        raise asyncio.CancelledError

    async with served(mock_model("a"), mock_model("b")) as (registry, _):
        with monkeypatch.context() as changed:
            changed.setattr("server.service.residency.asyncio.wait_for", leaves_at_the_end)
            with pytest.raises(asyncio.CancelledError):
                await registry.acquire("a")
        assert (state(registry, "a"), registry.resolve("a").num_users) == ("loaded", 0)
        await touch(registry, "b")  # for which a has to go


async def test_a_model_that_nobody_uses_goes_before_one_in_use() -> None:
    async with served(*(mock_model(name, 0.0029) for name in "abc")) as (registry, events):
        lease = await registry.acquire("a")
        await touch(registry, "b")
        await touch(registry, "c")
        assert events == ["+a", "+b", "-b", "+c"]
        lease.release()


async def test_a_failure_is_forgotten_once_the_model_has_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency_module, "RETRY_S", 0.0)
    broken = [ModelLoadError("it is broken")]
    config = EngineConfig(model_path="mock", backend="mock", memory=MemoryConfig(limit_gb=ONE))

    def build(share: MemoryShare | None) -> Engine:
        if broken:
            raise broken.pop()
        return create_engine(EngineConfig(**{**_fields(config), "share": share}))

    async with served(mock_model("a", build=build)) as (registry, _):
        with pytest.raises(ModelLoadError):
            await touch(registry, "a")
        assert state(registry, "a") == "failed"
        await touch(registry, "a")
        await registry.residency.unload(registry.resolve("a"))
        assert (state(registry, "a"), registry.resolve("a").failure) == ("unloaded", None)


async def test_a_pinned_model_is_never_the_one_that_goes() -> None:
    models = [mock_model("a", 0.0029, is_required=True, is_pinned=True), *(mock_model(name, 0.0029) for name in "bc")]
    async with served(*models) as (registry, events):
        await until(lambda: state(registry, "a") == "loaded")
        for name in "bc":
            await touch(registry, name)
        assert events == ["+a", "+b", "-b", "+c"]
