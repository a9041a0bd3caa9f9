"""The load of models under the names that routers read."""

from __future__ import annotations

import pytest

from mlx_backend.api.interface import EngineStats, MemoryReport, ModelInfo
from server.dialects.metrics.routers import router_families


def read(stats: EngineStats, info: ModelInfo | None) -> dict[str, float]:
    families = router_families([("mock", stats, info)])
    samples = [sample for family in families for sample in family.samples]
    assert all(sample.labels == {"model_name": "mock"} for sample in samples)
    return {sample.name.removeprefix("vllm:"): sample.value for sample in samples}


def test_prompts_that_are_being_computed_run_and_the_queue_waits() -> None:
    found = read(EngineStats(num_running=3, num_prefilling=2, num_waiting=7), None)
    assert found == {"num_requests_running": 5, "num_requests_waiting": 7, "kv_cache_usage_perc": 0}


@pytest.mark.parametrize(
    ("limit_bytes", "planned_bytes", "usage"),
    [(1000, 100, 0.25), (1000, 400, 1), (1000, 4000, 1), (600, 100, 0), (None, 100, 0)],
)
def test_the_usage_is_the_share_of_what_requests_may_take(
    limit_bytes: int | None, planned_bytes: int, usage: float
) -> None:
    memory = limit_bytes and MemoryReport(
        limit_bytes=limit_bytes, limit_basis="the test", weights_bytes=500, reserve_bytes=100
    )
    info = ModelInfo(context_limit=64, vocab_size=9, memory=memory or None)
    stats = EngineStats(planned_bytes=planned_bytes, kv_bytes=7, active_bytes=900)
    assert read(stats, info)["kv_cache_usage_perc"] == usage
