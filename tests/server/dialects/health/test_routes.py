"""The probes, for each state an engine can be in."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mlx_backend.api.interface import EngineHealth, EngineStats, LoadProgress
from server import __version__
from tests.fake_engine import FakeEngine
from tests.serving import client_of

LOADING = EngineHealth(status="loading", detail="reading", load=LoadProgress(done_bytes=250, total_bytes=1000))


@pytest.mark.parametrize(
    ("state", "health", "ready"),
    [
        (EngineHealth(status="ok"), 200, 200),
        (LOADING, 200, 503),
        (EngineHealth(status="stalled", detail="no step for 60 s"), 503, 503),
        (EngineHealth(status="dead", detail="device lost"), 503, 503),
    ],
)
async def test_states(state: EngineHealth, health: int, ready: int) -> None:
    engine = FakeEngine()
    engine.state = state
    async with client_of(engine) as client:
        live, able = await client.get("/health"), await client.get("/ready")
    assert (live.status_code, able.status_code) == (health, ready)
    for answer in (live, able):
        assert (answer.json()["status"], answer.json()["detail"]) == (state.status, state.detail)
    assert ("retry-after" in able.headers) is (state.status == "loading")


async def test_progress_of_loading() -> None:
    engine = FakeEngine(is_loaded=False)
    engine.state = LOADING
    async with client_of(engine) as client:
        body = (await client.get("/ready")).json()
    assert body["models"] == [
        {
            "id": "mock",
            "status": "loading",
            "detail": "reading",
            "load": {"done_bytes": 250, "total_bytes": 1000, "percent": 25.0},
            "stats": json.loads(json.dumps(dataclasses.asdict(EngineStats()))),
        }
    ]


async def test_no_percent_of_nothing() -> None:
    async with client_of(FakeEngine()) as client:
        assert (await client.get("/ready")).json()["models"][0]["load"]["percent"] is None


async def test_version() -> None:
    async with client_of(FakeEngine()) as client:
        assert (await client.get("/version")).json() == {"name": "pippin", "version": __version__}
