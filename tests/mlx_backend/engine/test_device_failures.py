"""A device that fails at every place where it can: who is told, who goes on, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mlx_backend.api.errors import EngineDead, OutOfMemory, SequenceFailed
from mlx_backend.api.interface import EngineConfig, HealthConfig, TokenStream
from mlx_backend.core.step import Chunk, PromptResult, ReadMasks, StepPlan, StepResult
from mlx_backend.engine import engine as engine_module
from mlx_backend.engine import loop as turns_module
from mlx_backend.engine.engine import DeviceEngine
from mlx_backend.runners.mock import MockRunner
from tests.engine_client import read, request, tokens, until

PROMPT = tuple(b"hello there")
CONFIG = EngineConfig(model_path="mock", backend="mock")

Fault = Callable[[], None]
"""Raises, or does not."""


class FaultyRunner(MockRunner):
    """The mock with a fault at any place: what is to be done at the k-th call of a kind, k from 1."""

    def __init__(self, config: EngineConfig = CONFIG) -> None:
        super().__init__(config)
        self.faults: dict[tuple[str, int], Fault] = {}
        self.every: dict[str, Fault] = {}
        self.calls: dict[str, int] = dict.fromkeys(("start", "collect", "prefill"), 0)

    def _meet(self, kind: str) -> None:
        self.calls[kind] += 1
        self.every.get(kind, lambda: None)()
        self.faults.get((kind, self.calls[kind]), lambda: None)()

    def start(self, plan: StepPlan, read_masks: ReadMasks) -> None:
        if plan.decodes:
            self._meet("start")
        super().start(plan, read_masks)

    def collect(self) -> StepResult:
        self._meet("collect")
        return super().collect()

    def prefill(self, chunk: Chunk) -> PromptResult:
        self._meet("prefill")
        return super().prefill(chunk)


def fails(error: Callable[[], BaseException]) -> Fault:
    def fault() -> None:
        raise error()

    return fault


def out_of_memory() -> OutOfMemory:
    return OutOfMemory("no room", ())


def broken() -> SequenceFailed:
    return SequenceFailed("broken", ())


@asynccontextmanager
async def engine_over(runner: FaultyRunner, config: EngineConfig = CONFIG) -> AsyncIterator[DeviceEngine]:
    engine = DeviceEngine(config, runner)
    engine.start()
    try:
        await until(lambda: engine.model_info is not None)
        yield engine
    finally:
        engine.close()


async def outcome(stream: TokenStream) -> list[list[int]] | type[BaseException]:
    try:
        return await asyncio.wait_for(tokens(stream), 20)
    except (SequenceFailed, EngineDead) as error:
        return type(error)


async def outcomes(streams: Iterable[TokenStream]) -> list[list[list[int]] | type[BaseException]]:
    return list(await asyncio.gather(*map(outcome, streams)))


# --- one failure and another


@pytest.mark.parametrize("kind", ["start", "collect", "prefill"])
async def test_failures_that_are_not_in_a_row_never_end_the_engine(kind: str) -> None:
    runner = FaultyRunner()
    async with engine_over(runner) as engine:
        for place in range(6):
            runner.every[kind] = fails(broken)
            assert await outcome(engine.submit([request((place, *PROMPT), 3)])) is SequenceFailed
            del runner.every[kind]
            assert isinstance(await outcome(engine.submit([request((place, *PROMPT), 3)])), list)
        assert engine.health().status == "ok"


@pytest.mark.parametrize("kind", ["start", "collect", "prefill"])
async def test_failures_in_a_row_end_it(kind: str) -> None:
    runner = FaultyRunner()
    runner.every[kind] = fails(broken)
    async with engine_over(runner) as engine:
        found = [await outcome(engine.submit([request((place, *PROMPT), 3)])) for place in range(3)]
        assert found == [SequenceFailed] * 3 or found == [SequenceFailed, SequenceFailed, EngineDead]
        await until(lambda: engine.health().status == "dead")


@pytest.mark.parametrize("kind", ["start", "collect", "prefill"])
async def test_any_number_of_times_out_of_memory_ends_nothing(kind: str) -> None:
    runner = FaultyRunner()
    runner.every[kind] = fails(out_of_memory)
    async with engine_over(runner) as engine:
        for place in range(8):
            assert await outcome(engine.submit([request((place, *PROMPT), 3)])) is OutOfMemory
        del runner.every[kind]
        assert isinstance(await outcome(engine.submit([request(PROMPT, 3)])), list)
        assert engine.health().status == "ok"


@pytest.mark.parametrize("at", range(1, 25))
@pytest.mark.parametrize("kind", ["start", "collect"])
async def test_answers_go_on_where_they_were_wherever_memory_runs_out(kind: str, at: int) -> None:
    """A step that was started on rows which are lost by then is not read."""
    prompts = [(place, *PROMPT) for place in range(4)]
    async with engine_over(FaultyRunner()) as engine:
        expected = [await outcome(engine.submit([request(prompt, 20)])) for prompt in prompts]
    runner = FaultyRunner()
    runner.faults[kind, at] = fails(out_of_memory)
    async with engine_over(runner) as engine:
        found = await outcomes([engine.submit([request(prompt, 20)]) for prompt in prompts])
    assert [answer for answer in found if answer is not OutOfMemory] == [
        answer for answer, told in zip(expected, found, strict=True) if told is not OutOfMemory
    ]
    assert found.count(OutOfMemory) <= 1


# --- its death


async def test_nobody_waits_for_ever_whose_request_had_just_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the inbox, in the queue, being computed, and writing."""
    runner, entered, may_go_on = FaultyRunner(), threading.Event(), threading.Event()

    def die() -> None:
        entered.set()
        may_go_on.wait(60)
        raise RuntimeError("the device is gone")

    async with engine_over(runner) as engine:
        runner.faults["prefill", 2] = die
        streams = [engine.submit([request(PROMPT, 2000)])]
        await until(lambda: engine.stats().num_running == 1)
        streams.append(engine.submit([request(PROMPT * 2, 5)]))
        await until(entered.is_set)
        streams += [engine.submit([request((place, *PROMPT), 5, n=2)]) for place in range(3)]
        may_go_on.set()
        assert await outcomes(streams) == [EngineDead] * 5
        assert engine.health().status == "dead"


async def test_all_choices_are_told_where_some_had_ended() -> None:
    async with engine_over(FaultyRunner()) as engine:
        whole = await tokens(engine.submit([request(PROMPT, 4000, n=4, stop_ids=frozenset({256}))]))
    lengths = sorted(map(len, whole))
    assert lengths[0] < lengths[-1]
    runner = FaultyRunner()
    runner.faults["start", (lengths[0] + lengths[-1]) // 2 + 1] = fails(lambda: RuntimeError("gone"))
    async with engine_over(runner) as engine:
        stream = engine.submit([request(PROMPT, 4000, n=4, stop_ids=frozenset({256}))])
        assert await outcome(stream) is EngineDead


async def test_nobody_waits_for_ever_who_comes_while_it_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the first look at the engine and the lock."""
    runner = FaultyRunner()
    async with engine_over(runner) as engine:
        build = engine_module.build_groups  # type: ignore[attr-defined]

        def die_meanwhile(requests: Any) -> Any:
            monkeypatch.setattr(engine_module, "build_groups", build)
            runner.every["start"] = fails(lambda: RuntimeError("gone"))
            engine.submit([request(PROMPT, 5)])
            engine._thread.join(60)
            assert not engine._thread.is_alive()
            return build(requests)

        monkeypatch.setattr(engine_module, "build_groups", die_meanwhile)
        with pytest.raises(EngineDead):
            engine.submit([request(PROMPT, 5)])


@pytest.mark.parametrize("kind", ["start", "collect", "prefill"])
@pytest.mark.parametrize("at", [1, 2, 5])
async def test_wherever_it_dies_everybody_is_told(kind: str, at: int) -> None:
    runner = FaultyRunner()
    runner.faults[kind, at] = fails(lambda: RuntimeError("gone"))
    async with engine_over(runner) as engine:
        streams = [engine.submit([request((place, *PROMPT), 30, n=1 + place % 2)]) for place in range(6)]
        assert set(await outcomes(streams)) <= {EngineDead}
        with pytest.raises(EngineDead):
            engine.submit([request(PROMPT)])


# --- its health


async def test_work_that_comes_after_a_long_rest_is_no_stall() -> None:
    config = EngineConfig(model_path="mock", backend="mock", health=HealthConfig(stall_s=3600))
    runner, entered, may_go_on = FaultyRunner(config), threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        may_go_on.wait(60)

    async with engine_over(runner, config) as engine:
        await until(lambda: not engine._busy)
        engine._counters.progress_at -= 100_000
        assert engine.health().status == "ok"
        runner.faults["prefill", 1] = wait
        stream = engine.submit([request(PROMPT, 3)])
        await until(entered.is_set)
        assert engine.health().status == "ok"
        engine._counters.progress_at -= 100_000
        assert engine.health().status == "stalled"
        may_go_on.set()
        await read(stream)
        await until(lambda: not engine._busy)
        engine._counters.progress_at -= 100_000
        assert engine.health().status == "ok"


class Clock:
    """A time that the device alone moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


async def test_a_prompt_between_two_steps_does_not_count_as_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else prompts would be thought to stall running streams less than they do."""
    clock, runner = Clock(), FaultyRunner()
    monkeypatch.setattr(turns_module, "time", clock)

    def takes(seconds: float) -> Fault:
        def pass_by() -> None:
            clock.now += seconds

        return pass_by

    runner.every = {"collect": takes(0.01), "prefill": takes(50.0)}
    async with engine_over(runner) as engine:
        writing = engine.submit([request(PROMPT, 400)])
        await anext(aiter(writing))
        for place in range(5):
            await outcome(engine.submit([request((place, *PROMPT), 2)]))
        assert engine._loop is not None
        assert engine._loop._throughput.decode_s == pytest.approx(0.01, rel=0.2)
        await writing.aclose()
