from __future__ import annotations

from pathlib import Path

import pytest

from bench.large_soak import config_of, soak


@pytest.mark.parametrize(("backend", "num_requests"), [("mock", 80), pytest.param("mlx", 50, marks=pytest.mark.mlx)])
async def test_answers_under_constant_preemption_are_those_of_the_same_requests_alone(
    backend: str, num_requests: int, tmp_path: Path
) -> None:
    report = await soak(config_of(backend, tmp_path), num_requests, seed=2, num_different=8, most_tokens=60)
    assert report.num_different == 0
    assert report.stats.num_preemptions > 5
    assert report.stats.num_failed == 0
    assert not any(report.leftovers.values()), report.leftovers
