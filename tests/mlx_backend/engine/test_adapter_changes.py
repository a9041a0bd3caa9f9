"""Adapters that come and go between steps: what they leave for requests, and which changes wait. The mock; no MLX."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_backend.api.errors import AdapterRefused, EngineDead, ModelLoadError, NoRoomForAdapter, UnknownAdapter
from mlx_backend.api.interface import AdapterConfig, AdapterInfo, DebugConfig, EngineConfig, MockConfig, ModelInfo
from mlx_backend.engine.adapter_changes import AdapterChanges, Change
from mlx_backend.model.adapter_files import AdapterFiles, Factors, stacked_bytes
from mlx_backend.planning.admission import Budget, Reservation
from mlx_backend.runners import mock
from tests.engine_client import DEADLINE_S, one, request, running, tokens, until

A, B = AdapterConfig("a", "/a"), AdapterConfig("b", "/b")


def slow(itl_s: float = 0.002) -> EngineConfig:
    return EngineConfig(model_path="mock", backend="mock", adapters=(A,), mock=MockConfig(itl_s=itl_s, ttft_s=0))


async def done(change: Future[ModelInfo]) -> list[str]:
    return [adapter.name for adapter in (await asyncio.wrap_future(change)).adapters]


async def test_adapters_come_and_go_while_others_decode() -> None:
    async with running(slow()) as engine:
        expected = await one(engine, range(20), 40)
        stream = engine.submit([request(range(20), 40)])
        assert await done(engine.load_adapter(B)) == ["a", "b"]
        assert await one(engine, range(20), 4, adapter="b") == expected[:4]
        assert await done(engine.unload_adapter("a")) == ["b"]
        assert (await tokens(stream))[0] == expected
        with pytest.raises(UnknownAdapter):
            engine.submit([request(range(5), 4, adapter="a")])
        with pytest.raises(UnknownAdapter):
            engine.unload_adapter("a")
        assert await done(engine.load_adapter(A)) == ["b", "a"]
        with pytest.raises(AdapterRefused, match="loaded already"):
            await done(engine.load_adapter(A))


async def test_an_adapter_goes_when_its_requests_are_done_and_takes_no_others() -> None:
    async with running(slow()) as engine:
        expected = await one(engine, range(20), 60, adapter="a")
        stream = engine.submit([request(range(20), 60, adapter="a")])
        going = engine.unload_adapter("a")
        assert engine.model_info is not None
        assert engine.model_info.adapters == ()
        with pytest.raises(UnknownAdapter):
            engine.submit([request(range(5), 4, adapter="a")])
        again, other = engine.load_adapter(A), engine.load_adapter(B)
        assert "b" in await done(other)  # does not wait for the one that goes
        assert not going.done()
        assert not again.done()
        assert (await tokens(stream))[0] == expected
        assert await done(going) == ["b"]
        assert await done(again) == ["b", "a"]


async def test_the_last_token_of_the_last_request_lets_an_adapter_go() -> None:
    async with running(slow()) as engine:
        stream = engine.submit([request(range(5), 30, adapter="a")])
        going = engine.unload_adapter("a")  # nothing else has the device thread look again
        await tokens(stream)
        assert await asyncio.wait_for(done(going), DEADLINE_S) == []


async def test_changes_that_wait_end_with_the_engine() -> None:
    async with running(slow(0.01)) as engine:
        stream = engine.submit([request(range(20), 500, adapter="a")])
        going = engine.unload_adapter("a")
        assert not going.cancel()
        engine.close()
        with pytest.raises(EngineDead):
            await done(going)
        with pytest.raises(EngineDead):
            engine.load_adapter(B)
        with pytest.raises(EngineDead):
            await tokens(stream)


async def test_what_an_adapter_computed_is_not_another_ones_of_its_name() -> None:
    prompt = range(100)
    async with running(slow()) as engine:

        async def cached() -> int:
            stream = engine.submit([request(prompt, 8, adapter="a")])
            await tokens(stream)
            return stream.num_cached_tokens

        assert await cached() == 0
        assert await cached() > 0
        await done(engine.unload_adapter("a"))
        await done(engine.load_adapter(AdapterConfig("a", "/other")))
        assert await cached() == 0
        await done(engine.unload_adapter("a"))
        await done(engine.load_adapter(A))
        assert await cached() > 0


async def test_a_recorded_run_refuses_changes(tmp_path: Path) -> None:
    debug = DebugConfig(record=str(tmp_path / "run"))
    async with running(EngineConfig(model_path="mock", backend="mock", debug=debug)) as engine:
        with pytest.raises(AdapterRefused, match="recorded"):
            engine.load_adapter(B)


async def test_many_clients_and_many_changes() -> None:
    """The mock kills the engine where a row is computed whose adapter it does not hold."""
    async with running(slow(0.0)) as engine:
        served = {"ok": 0, "unknown": 0}

        async def ask(number: int) -> None:
            for turn in range(25):
                try:
                    await one(engine, range(10), 5, adapter=("", "a", "b")[(number + turn) % 3])
                    served["ok"] += 1
                except UnknownAdapter:
                    served["unknown"] += 1
                    await asyncio.sleep(0)

        async def change(adapter: AdapterConfig) -> None:
            for _ in range(25):
                for begin in (lambda: engine.load_adapter(adapter), lambda: engine.unload_adapter(adapter.name)):
                    try:
                        await done(begin())
                    except (AdapterRefused, UnknownAdapter):
                        await asyncio.sleep(0)

        await asyncio.gather(*(ask(number) for number in range(6)), change(A), change(B), change(A))
        assert engine.failure is None
        assert sum(served.values()) == 150
        assert served["ok"] > 50
        await until(lambda: engine.stats().num_running == 0)


# --- bytes


class Host:
    """Adapters of which those called `bad` cannot be held."""

    def __init__(self) -> None:
        self.files: tuple[AdapterFiles, ...] = ()

    def open(self, adapter: AdapterConfig) -> AdapterFiles:
        rank = int(adapter.path)
        return AdapterFiles(
            adapter.name, Path(), "mlx-lm", {"x": Factors("a", "b", 5, 7, rank, 1.0)}, f"{adapter.name}{rank}"
        )

    def change(self, files: Sequence[AdapterFiles]) -> tuple[AdapterInfo, ...]:
        if any(each.name == "bad" for each in files):
            raise ModelLoadError("adapter bad cannot be held")
        self.files = tuple(files)
        return tuple(AdapterInfo(name=each.name, digest=each.digest) for each in files)


class World:
    """An engine's parts, without its threads."""

    def __init__(self, limit_bytes: int | None) -> None:
        self.host = Host()
        budget = None if limit_bytes is None else mock._budget(limit_bytes)
        self.runner: Any = SimpleNamespace(adapters=self.host, budget=budget)
        self.loop: Any = SimpleNamespace(
            requests=[], scheduler=SimpleNamespace(planned_bytes=0), make_room=lambda kept: self.rooms.append(kept)
        )
        self.rooms: list[int | None] = []
        self.changes = AdapterChanges(self.runner, threading.Condition(), deque())
        context = 1000 if budget is None else min(1000, budget.largest_alone(1))
        self.changes.begin(ModelInfo(context_limit=context, vocab_size=260, weights_bytes=100))
        self.limit = limit_bytes

    @property
    def budget(self) -> Budget:
        budget = self.runner.budget
        assert isinstance(budget, Budget)
        return budget

    def make(self, begin: Callable[[], Any]) -> str:
        """Ask for a change and make it; the error's class, or nothing."""
        try:
            change = begin()
            self.changes.add(change)
            self.changes.apply(self.loop)
            change.done.result(0)
        except (AdapterRefused, NoRoomForAdapter, UnknownAdapter) as error:
            return type(error).__name__
        return ""

    def load(self, name: str, rank: int) -> str:
        return self.make(lambda: self.changes.open(AdapterConfig(name, str(rank))))

    def unload(self, name: str) -> str:
        return self.make(lambda: Change(name, None))


@settings(max_examples=40)
@given(
    st.one_of(st.none(), st.integers(50_000, 200_000)),
    st.lists(
        st.tuples(st.sampled_from(["load", "unload"]), st.sampled_from(["a", "b", "c", "bad"]), st.integers(1, 900))
    ),
)
def test_bytes_and_facts_are_those_of_what_is_held(limit: int | None, turns: list[tuple[str, str, int]]) -> None:
    world = World(limit)
    for how, name, rank in turns:
        before = world.host.files
        refused = world.load(name, rank) if how == "load" else world.unload(name)
        assert not refused or world.host.files == before
        held, info = stacked_bytes(world.host.files), world.changes.info
        assert info is not None
        assert [each.name for each in info.adapters] == [each.name for each in world.host.files]
        assert world.changes.digests == {each.name: each.digest for each in world.host.files}
        assert info.weights_bytes == 100 + held
        assert "bad" not in world.changes.digests
        if limit is not None:
            assert world.budget.limit_bytes == limit - held
            assert info.context_limit == min(1000, world.budget.largest_alone(1)) > 0


def test_a_request_that_would_not_fit_any_more_keeps_an_adapter_out() -> None:
    world = World(40_000)
    world.loop.requests = [request(range(900), 100)]
    needed = world.budget.needed([_alone(900, 1000)])
    rank = (40_000 - needed) // (4 * 2 * 12)
    assert world.load("a", rank + 1) == "NoRoomForAdapter"
    assert world.load("a", rank) == ""
    world.loop.requests = []
    assert world.load("b", 400) == "NoRoomForAdapter"  # beside it no request of a useful size would fit
    assert world.unload("a") == ""
    assert world.budget.limit_bytes == 40_000


def _alone(num_prompt: int, num_tokens: int) -> Reservation:
    return Reservation(1, num_prompt, num_tokens)


def test_both_the_old_factors_and_the_new_ones_fit_while_they_are_built() -> None:
    world = World(100_000)
    assert world.load("a", 10) == ""
    assert world.load("b", 20) == ""
    held_while = stacked_bytes(world.host.files) + stacked_bytes(world.host.files[:1])
    assert world.rooms[1] == 100_000 - held_while
