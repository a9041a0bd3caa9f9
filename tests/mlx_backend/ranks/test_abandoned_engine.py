"""An engine whose device thread waits for a rank that is lost: everybody is told, by another thread."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from mlx_backend.api.errors import EngineDead
from mlx_backend.api.interface import EngineConfig
from mlx_backend.core.step import StepResult
from mlx_backend.engine import engine as engine_module
from mlx_backend.engine.engine import DeviceEngine
from mlx_backend.runners.mock import MockRunner
from tests.engine_client import request, tokens, until

CONFIG = EngineConfig(model_path="mock", backend="mock")
WAIT_S = 60.0


class Waiting(MockRunner):
    """The mock; its steps end only when told to, as those of a rank whose peer is lost never do."""

    def __init__(self) -> None:
        super().__init__(CONFIG)
        self.waits, self.ends = threading.Event(), threading.Event()

    def collect(self) -> StepResult:
        self.waits.set()
        self.ends.wait(WAIT_S)
        return super().collect()


async def test_streams_fail_and_the_engine_is_dead_while_the_device_thread_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_module, "_LEAVE_S", 0.05)
    runner, deaths = Waiting(), list[str]()
    engine = DeviceEngine(CONFIG, runner)
    engine.on_death(lambda: deaths.append("dead"))
    engine.start()
    await until(lambda: engine.model_info is not None)
    stream = asyncio.create_task(tokens(engine.submit([request((1, 2, 3), 5)])))
    await until(runner.waits.is_set)
    await asyncio.to_thread(engine.abandon, EngineDead("rank 1 is lost"))
    with pytest.raises(EngineDead, match="rank 1 is lost"):
        await asyncio.wait_for(stream, WAIT_S)
    assert engine.health().status == "dead"
    with pytest.raises(EngineDead, match="rank 1 is lost"):
        engine.submit([request((1, 2), 1)])
    began = time.monotonic()
    engine.close(timeout_s=WAIT_S)
    assert time.monotonic() - began < WAIT_S / 2, "closing waited for the device thread"
    runner.ends.set()
    engine._thread.join(WAIT_S)
    assert deaths == ["dead"]
    assert str(engine.failure) == "rank 1 is lost"


async def test_an_idle_engine_ends_by_itself_and_says_why() -> None:
    engine = DeviceEngine(CONFIG, MockRunner(CONFIG))
    engine.start()
    await until(lambda: engine.model_info is not None)
    await asyncio.to_thread(engine.abandon, EngineDead("rank 1 is lost"))
    assert not engine._thread.is_alive()
    assert engine.health().status == "dead"
    assert str(engine.failure) == "rank 1 is lost"


async def test_an_engine_that_closes_is_not_said_to_die() -> None:
    engine = DeviceEngine(CONFIG, MockRunner(CONFIG))
    engine.start()
    await until(lambda: engine.model_info is not None)
    engine.close()
    engine.abandon(EngineDead("rank 1 is lost"))
    assert engine.failure is None
