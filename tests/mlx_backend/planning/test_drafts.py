"""What verifying guesses should cost and win."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from mlx_backend.api.interface import KVCacheConfig
from mlx_backend.factory import read_shape
from mlx_backend.kv_cache.plan import plan_caches
from mlx_backend.planning.drafts import Verification, gain_range, plan_verification
from mlx_backend.planning.machines import find_machine

PROFILES = Path(__file__).parents[3] / "server" / "profiles"


@pytest.mark.mlx
def test_a_mixture_of_experts_pays_more_for_each_guess_than_a_dense_model() -> None:
    machine = find_machine("m3-ultra-512")
    ratios = {}
    for name, model in {"moe": "deepseek-r1-4bit", "dense": "qwen3-8b-4bit"}.items():
        shape, caches = read_shape(str(PROFILES / f"{model}.json"))
        found = plan_verification(shape, plan_caches(caches, KVCacheConfig()), machine)
        ratios[name] = [each.step_ratio for each in found]
        assert all(first <= second for first, second in pairwise([1.0, *ratios[name]]))
    assert all(moe > dense for moe, dense in zip(ratios["moe"], ratios["dense"], strict=True))


def test_a_gain_is_tokens_by_time() -> None:
    assert Verification(2, 1.5).gain(0.5) == pytest.approx(1.75 / 1.5)
    assert Verification(4, 2.0).gain(0.0) == 0.5
    assert Verification(4, 2.0).least_gain(0.5) < Verification(4, 2.0).gain(0.5)
    low, high = gain_range([Verification(1, 1.0), Verification(4, 1.0)])
    assert low == 1.0
    assert high > 4
