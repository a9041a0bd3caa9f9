"""Plans over several machines: what fits every rank, which way is better, and published speeds."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_backend.api.interface import KVCacheConfig
from mlx_backend.factory import SplitModel, open_split_model, read_shape
from mlx_backend.planning.links import find_link
from mlx_backend.planning.machines import Machine, find_machine
from mlx_backend.planning.memory import ModelShape
from mlx_backend.planning.ranks import Parallel, balanced_split
from mlx_backend.planning.ranks_plan import RanksPlan, build_ranks_plan, choose, compare_split

pytestmark = pytest.mark.mlx

PROFILES = Path(__file__).parents[3] / "server" / "profiles"
M3, M2 = "m3-ultra-512", "m2-ultra-192"


@functools.cache
def opened(name: str, bits: int | None = None) -> tuple[SplitModel, tuple[ModelShape, Any]]:
    file = str(PROFILES / f"{name}.json")
    return open_split_model(file, bits), read_shape(file, bits)


@functools.cache
def ranks_of(name: str, parallel: Parallel, size: int, split: tuple[int, ...] | None, bits: int | None) -> Any:
    return opened(name, bits)[0].ranks(parallel, size, split)


def plan(
    name: str,
    parallel: Parallel,
    size: int = 2,
    *,
    machine: str | Machine = M3,
    link: str = "tb5",
    split: tuple[int, ...] | None = None,
    bits: int | None = None,
    **options: Any,
) -> RanksPlan:
    options = {"users": (1,), **options}
    at = find_machine(machine) if isinstance(machine, str) else machine
    ranks, whole = ranks_of(name, parallel, size, split, bits), opened(name, bits)[1]
    return build_ranks_plan(whole, ranks, at, find_link(link), KVCacheConfig(), **options)


@pytest.mark.parametrize("parallel", ["tensor", "pipeline"])
@settings(max_examples=12)
@given(budget=st.integers(180, 230), users=st.integers(1, 8))
def test_what_fits_fits_every_rank_and_no_more_would(parallel: Parallel, budget: int, users: int) -> None:
    found = plan("deepseek-r1-4bit", parallel, users=(users,), budget_bytes=budget * 10**9)
    (row,) = found.rows
    if not row.memories:
        assert found.largest_bytes + found.reserve_bytes + 10**9 > budget * 10**9
        return
    assert len({memory.context for memory in row.memories}) == len({m.prefill_step for m in row.memories}) == 1
    assert all(memory.total_bytes <= budget * 10**9 for memory in row.memories)
    assert [m.weights_bytes for m in row.memories] == [rank.shape.weights_bytes for rank in found.ranks.ranks]


def test_the_fullest_rank_says_how_much_fits() -> None:
    even = plan("deepseek-r1-3bit", "pipeline", machine=M2, link="tb4", budget_bytes=183_500_800_000)
    balanced = plan(
        "deepseek-r1-3bit", "pipeline", machine=M2, link="tb4", budget_bytes=183_500_800_000, split=(29, 32)
    )
    told = compare_split(even, balanced)
    assert told is not None and "--split 29,32" in told and f"instead of {even.rows[0].context:,}" in told
    assert compare_split(balanced, even) is None
    assert (even.rows[0].context or 0) < (balanced.rows[0].context or 0)
    assert even.num_chats < balanced.num_chats


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=40), st.integers(2, 6))
def test_balanced_splits_are_as_even_as_any(layer_bytes: list[int], size: int) -> None:
    size = min(size, len(layer_bytes))
    split = balanced_split(layer_bytes, size)
    assert len(split) == size and min(split) >= 1 and sum(split) == len(layer_bytes)
    assert _largest(layer_bytes, split) == _best(tuple(layer_bytes), size)


def _largest(layer_bytes: Sequence[int], split: Sequence[int]) -> int:
    end, found = len(layer_bytes), []
    for count in split:  # rank 0 has the last layers
        found.append(sum(layer_bytes[end - count : end]))
        end -= count
    return max(found)


def _best(layer_bytes: tuple[int, ...], size: int) -> int:
    best = [sum(layer_bytes[:end]) for end in range(len(layer_bytes) + 1)]
    for _ in range(size - 1):
        best = [
            min((max(best[at], sum(layer_bytes[at:end])) for at in range(end)), default=0)
            for end in range(len(layer_bytes) + 1)
        ]
    return best[-1]


@pytest.mark.parametrize(
    ("name", "bits", "size", "measured"),
    [
        ("deepseek-r1-4bit", None, 2, 27.8),
        ("deepseek-r1-4bit", None, 4, 32.5),
        ("qwen3-235b-4bit", 8, 2, 26.2),
        ("qwen3-235b-4bit", 8, 4, 31.9),
    ],
)
def test_published_speeds_over_thunderbolt_5_lie_in_the_range(
    name: str, bits: int | None, size: int, measured: float
) -> None:
    """exo's chart of M3 Ultras with RDMA: DeepSeek V3.1, of R1's shape, and Qwen3-235B in 8 bits; short prompts."""
    found = plan(name, "tensor", size, bits=bits, context=512, users=(1,)).rows[0].decode
    assert found is not None
    assert found.low <= measured <= found.high


def test_a_pipeline_is_no_faster_than_one_machine() -> None:
    from mlx_backend.planning.planner import build_plan

    alone = build_plan(*opened("deepseek-r1-4bit")[1], find_machine(M3), KVCacheConfig(), context=4096).rows[0].decode
    both = plan("deepseek-r1-4bit", "pipeline", context=4096).rows[0].decode
    assert alone is not None and both is not None
    assert 0.97 * alone.value < both.value < alone.value


@pytest.mark.parametrize(
    ("link", "better"), [("tb5", "tensor"), ("tb4", "pipeline"), ("10gbe", "pipeline"), ("1gbe", "pipeline")]
)
def test_the_better_way_for_a_link(link: str, better: str) -> None:
    choice = choose(plan("deepseek-r1-4bit", "tensor", link=link), plan("deepseek-r1-4bit", "pipeline", link=link))
    assert choice.plan.ranks.parallel == better
    assert choice.reason.startswith(f"{better}: about ")
    assert choice.other is not None and choice.other.ranks.parallel != better


def test_a_way_that_fits_is_better_than_one_that_does_not() -> None:
    options: dict[str, Any] = {"budget_bytes": 200 * 10**9, "link": "1gbe"}
    choice = choose(plan("deepseek-r1-4bit", "tensor", **options), plan("deepseek-r1-4bit", "pipeline", **options))
    assert (choice.plan.ranks.parallel, choice.reason) == ("tensor", "tensor: pipeline does not fit")


def test_where_neither_fits_the_one_that_needs_less_is_shown() -> None:
    options: dict[str, Any] = {"budget_bytes": 100 * 10**9}
    choice = choose(plan("deepseek-r1-4bit", "tensor", **options), plan("deepseek-r1-4bit", "pipeline", **options))
    assert not choice.plan.fits
    assert choice.reason == "tensor: neither fits; its largest rank holds 189.7 GB of weights, pipeline's 201.8"


@pytest.mark.parametrize(("link", "better"), [("tb5", "tensor"), ("10gbe", "pipeline")])
def test_without_speeds_the_link_decides(link: str, better: str) -> None:
    unknown = replace(find_machine(M3), chip="", bandwidth=0, gpu_cores=0)
    plans = [plan("deepseek-r1-4bit", how, machine=unknown, link=link) for how in ("tensor", "pipeline")]
    choice = choose(*plans)
    assert choice.plan.ranks.parallel == better
    assert "speeds are unknown" in choice.reason


@pytest.mark.parametrize("is_first", [True, False])
def test_one_way_alone(is_first: bool) -> None:
    tensor = plan("gpt-oss-120b-mxfp4", "tensor")
    if is_first:
        choice = choose(tensor, "there is no pipeline")
        assert choice.reason == "tensor: the alternative is not possible: there is no pipeline"
        assert choice.plan is tensor
    else:
        pipeline = plan("deepseek-r1-4bit", "pipeline")
        assert choose("no tensors", pipeline).plan is pipeline


def test_a_raised_limit_is_advised_where_it_helps() -> None:
    short = plan("deepseek-r1-3bit", "pipeline", machine=M2, link="tb4")
    assert not short.fits
    advice = next(line for line in short.advice if "iogpu.wired_limit_mb" in line)
    assert "on every machine" in advice and "tokens fit for 1 user" in advice
    assert not any("iogpu" in line for line in plan("deepseek-r1-4bit", "tensor").advice)


def test_advice_where_nothing_helps() -> None:
    (advice,) = plan("deepseek-r1-4bit", "tensor", machine="m4-max-128").advice
    assert advice.startswith("Use more machines")
