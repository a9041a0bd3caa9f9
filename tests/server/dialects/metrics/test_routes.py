"""The metrics as Prometheus' own parser reads them."""

from __future__ import annotations

from typing import Literal

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlx_backend.api.interface import Engine, EngineConfig, EngineHealth, MockConfig, SchedulerConfig
from mlx_backend.factory import create_engine
from server.app import create_app
from server.config import Config
from server.power import Reading
from tests.fake_engine import FakeEngine
from tests.serving import build_registry, client_of, mock_engine, serve, wait_until


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
    assert found["pippin_num_requests_running", "mock"] == 0
    assert found["pippin_engine_steps_total", "mock"] >= 3
    assert found["pippin_memory_bytes", "mock", "active"] > 0
    assert found["pippin_requests_total", "mock", "length"] == 1
    assert found["pippin_requests_total", "mock", "stop"] == 0
    assert found["pippin_generation_tokens_total", "mock"] == 6
    for name in ("time_to_first_token_seconds", "request_queue_time_seconds", "e2e_request_latency_seconds"):
        assert found[f"pippin_{name}_count", "mock"] == found[f"pippin_{name}_bucket", "mock", "+Inf"] == 1
        assert 0 <= found[f"pippin_{name}_sum", "mock"] < 30
    assert found["pippin_request_prompt_tokens_sum", "mock"] == 3  # with the one that begins a text
    assert found["pippin_request_prompt_tokens_bucket", "mock", "1.0"] == 0
    assert found["pippin_request_prompt_tokens_bucket", "mock", "4.0"] == 1
    assert found["pippin_request_generation_tokens_sum", "mock"] == 6
    assert found["pippin_model_loaded", "mock"] == 1
    assert found["pippin_model_state", "mock", "ok"] == 1
    assert found["pippin_model_state", "mock", "loading"] == 0


def test_a_client_that_leaves_and_one_that_is_refused() -> None:
    with serve(mock_engine(itl_s=0.01)) as server:
        body = {"prompt": "hi", "max_tokens": 4000, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
            next(answer.iter_bytes())
        httpx.post(f"{server.url}/v1/completions", json={"prompt": "hi", "model": "other"})
        httpx.post(f"{server.url}/v1/completions", json={"prompt": ""})
        httpx.get(f"{server.url}/nowhere")
        httpx.post(f"{server.url}/v1/completions", content=b"x" * 16_777_217)
        server.wait_until_idle()
        wait_until(lambda: _read_of(server.url)["pippin_requests_total", "mock", "aborted"] == 1)
        found = _read_of(server.url)
    errors = {key[1:]: value for key, value in found.items() if key[0] == "pippin_errors_total" and value}
    assert errors == {
        ("model_not_found", "404"): 1,
        ("invalid_value", "400"): 1,
        ("not_found", "404"): 1,
        ("request_too_large", "413"): 1,
    }
    assert found["pippin_generation_tokens_total", "mock"] > 0
    assert found["pippin_e2e_request_latency_seconds_count", "mock"] == 0


@pytest.mark.parametrize("streams", [True, False])
def test_an_error_counts_once_before_and_after_the_first_byte(streams: bool) -> None:
    with serve(mock_engine(fault="fail@3", itl_s=0.01)) as server:
        body = {"prompt": "hi", "max_tokens": 40, "stream": streams}
        httpx.post(f"{server.url}/v1/completions", json=body)
        found = _read_of(server.url)
    assert found["pippin_errors_total", "sequence_failed", "500"] == 1
    assert found["pippin_errors_total", "out_of_memory", "503"] == 0  # is there, so that its first increase is seen
    assert found["pippin_requests_total", "mock", "error"] == 1


@pytest.mark.parametrize("status", ["loading", "ok", "stalled", "dead"])
async def test_the_state_is_the_one_of_health(status: Literal["loading", "ok", "stalled", "dead"]) -> None:
    engine = FakeEngine()
    engine.state = EngineHealth(status=status)
    async with client_of(engine) as client:
        found = read((await client.get("/metrics")).text)
    states = {key[2]: value for key, value in found.items() if key[0] == "pippin_model_state"}
    assert states.pop(status) == 1
    assert len(states) >= 3 and not any(states.values())


def test_two_applications_count_apart() -> None:
    with serve(mock_engine()) as one, serve(mock_engine()) as other:
        httpx.post(f"{one.url}/v1/completions", json={"prompt": "hi"}).raise_for_status()
        counted = [_read_of(server.url)["pippin_requests_total", "mock", "length"] for server in (one, other)]
    assert counted == [1, 0]


def test_running_streams_that_pause_are_counted() -> None:
    """A step of the mock takes longer than a stream may be made to wait."""
    with serve(_engine_with(max_stall_s=0.01)) as server:
        httpx.post(f"{server.url}/v1/completions", json={"prompt": "hi", "max_tokens": 5}).raise_for_status()
        assert _read_of(server.url)["pippin_stalls_total", "mock"] == 4
    with serve(_engine_with(max_stall_s=20)) as server:
        httpx.post(f"{server.url}/v1/completions", json={"prompt": "hi", "max_tokens": 5}).raise_for_status()
        assert _read_of(server.url)["pippin_stalls_total", "mock"] == 0


def test_the_process() -> None:
    with serve(mock_engine()) as server:
        found = _read_of(server.url)
    assert found[("process_resident_memory_bytes",)] > 10_000_000
    assert found[("process_cpu_seconds_total",)] > 0
    assert found[("process_open_fds",)] > 2
    assert found[("process_threads",)] > 1


async def test_power_where_it_is_measured() -> None:
    app = create_app(Config(), build_registry(FakeEngine()))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        without = read((await client.get("/metrics")).text)
        app.parts.power.reading = Reading({"gpu": 90.5}, {"cpu": 61.0})
        found = read((await client.get("/metrics")).text)
    assert not [key for key in without if key[0] in ("pippin_power_watts", "pippin_temperature_celsius")]
    assert found["pippin_power_watts", "gpu"] == 90.5
    assert found["pippin_temperature_celsius", "cpu"] == 61


def test_the_prefix_cache() -> None:
    """The same prompt twice: computed once, but for its last token, which is a decode's."""
    with serve(mock_engine()) as server:
        for _ in range(2):
            body = {"prompt": "x" * 200, "max_tokens": 2}
            httpx.post(f"{server.url}/v1/completions", json=body).raise_for_status()
            server.wait_until_idle()
        off = {"prompt": "x" * 200, "max_tokens": 2, "prefix_cache": False}
        httpx.post(f"{server.url}/v1/completions", json=off).raise_for_status()
        server.wait_until_idle()
        wait_until(lambda: _read_of(server.url)["pippin_prompt_tokens_total", "mock", "computed"] == 400)
        found = _read_of(server.url)
    assert found["pippin_prompt_tokens_total", "mock", "cached"] == 200
    assert found["pippin_prefix_cache_hit_tokens_total", "mock", "ram"] == 200
    assert found["pippin_prefix_cache_hit_tokens_total", "mock", "disk"] == 0
    assert found["pippin_prefix_cache_blocks", "mock", "ram"] == 4
    assert found["pippin_prefix_cache_bytes", "mock", "ram"] > 0
    assert found["pippin_prefix_cache_bytes", "mock", "disk"] == 0
    assert found["pippin_prefix_cache_evicted_blocks_total", "mock", "ram"] == 0
    assert found["pippin_prefix_cache_evicted_blocks_total", "mock", "disk"] == 0


def _engine_with(*, max_stall_s: float) -> Engine:
    scheduler, mock = SchedulerConfig(max_stall_s=max_stall_s), MockConfig(itl_s=0.05)
    return create_engine(EngineConfig(model_path="mock", backend="mock", scheduler=scheduler, mock=mock))


def _read_of(url: str) -> dict[tuple[str, ...], float]:
    return read(httpx.get(f"{url}/metrics").text)


async def test_while_a_model_loads_there_are_metrics() -> None:
    async with client_of(FakeEngine(is_loaded=False)) as client:
        found = read((await client.get("/metrics")).text)
    assert found["pippin_memory_bytes", "mock", "planned"] == 0
    assert ("pippin_memory_bytes", "mock", "limit") not in found
    assert found["pippin_model_loaded", "mock"] == 0
    assert ("pippin_model_load_seconds", "mock") not in found
    assert found["vllm:kv_cache_usage_perc", "mock"] == 0
