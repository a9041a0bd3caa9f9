"""The metrics as Prometheus' own parser reads them."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.fake_engine import FakeEngine
from tests.serving import client_of, mock_engine, serve


def read(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels, key="model".__ne__))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_was_served_is_counted() -> None:
    with serve(mock_engine()) as server:
        httpx.post(f"{server.url}/v1/completions", json={"prompt": "hi", "max_tokens": 3, "n": 2}).raise_for_status()
        answer = httpx.get(f"{server.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = read(answer.text)
    assert found["pippin_sequences_total", "mock", "finished"] == 2
    assert found["pippin_requests", "mock", "running"] == 0
    assert found["pippin_engine_steps_total", "mock"] >= 3
    assert found["pippin_memory_bytes", "mock", "active"] > 0


async def test_while_a_model_loads_there_are_metrics() -> None:
    async with client_of(FakeEngine(is_loaded=False)) as client:
        found = read((await client.get("/metrics")).text)
    assert found["pippin_memory_bytes", "mock", "planned"] == 0
    assert ("pippin_memory_bytes", "mock", "limit") not in found
