"""Admission over several ranks: no rank is given what it has no room for. No MLX."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_backend.kv_cache.plan import CachePlan, CacheShape, PartShape
from mlx_backend.planning.admission import SMALLEST_STEP, Budget, Reservation
from mlx_backend.planning.memory import AttentionShape, ModelShape
from mlx_backend.planning.ranks_budget import RanksBudget

SHAPE = ModelShape(
    model_type="llama",
    num_parameters=8 * 10**9,
    weights_bytes=5 * 10**9,
    active_parameters=8 * 10**9,
    active_bytes=5 * 10**9,
    num_layers=32,
    hidden_size=4096,
    widest=14_336,
    vocab_size=128_256,
    context_length=131_072,
    itemsize=2,
    attention=AttentionShape(num_heads=32, key_dim=128, value_dim=128),
)
LAYER = CachePlan(CacheShape("plain", PartShape(8, 128, 2), PartShape(8, 128, 2)))

claims = st.lists(
    st.builds(
        lambda rows, prompt, output, done: Reservation(rows, prompt, prompt + output, done),
        st.integers(1, 4),
        st.integers(1, 60_000),
        st.integers(1, 8000),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)
ranks = st.lists(st.tuples(st.integers(1, 32), st.integers(1, 60), st.integers(4096, 40_000)), min_size=1, max_size=4)
chunks = st.lists(st.tuples(st.integers(1, 2048), st.integers(2048, 60_000)), max_size=3)


def budgets_of(found: list[tuple[int, int, int]]) -> list[Budget]:
    """(layers, GB, widest) of each rank."""
    return [
        Budget(replace(SHAPE, num_layers=layers, widest=widest), [LAYER] * layers, gigabytes * 10**9)
        for layers, gigabytes, widest in found
    ]


@settings(max_examples=50)
@given(ranks, claims, chunks)
def test_what_fits_every_rank_is_admitted_and_nothing_else(
    found: list[tuple[int, int, int]], asked: list[Reservation], sizes: list[tuple[int, int]]
) -> None:
    budgets = budgets_of(found)
    group = RanksBudget(budgets)
    assert group.admits(asked) == all(budget.admits(asked) for budget in budgets)
    room = min(budget.limit_bytes - budget.needed_soon(asked, sizes) for budget in budgets)
    assert group.limit_bytes - group.needed_soon(asked, sizes) == room
    longest = max(claim.num_prompt_tokens for claim in asked)
    step = group.step_for(asked, longest, 2048)
    assert SMALLEST_STEP <= step == min(budget.step_for(asked, longest, 2048) for budget in budgets)


@settings(max_examples=25)
@given(ranks, st.integers(1, 4))
def test_the_largest_request_alone_fits_every_rank(found: list[tuple[int, int, int]], rows: int) -> None:
    budgets = budgets_of(found)
    assert RanksBudget(budgets).largest_alone(rows) == min(budget.largest_alone(rows) for budget in budgets)


@settings(max_examples=25)
@given(ranks, st.integers(1, 4), claims, chunks)
def test_of_equal_ranks_it_is_that_of_one(
    found: list[tuple[int, int, int]], size: int, asked: list[Reservation], sizes: list[tuple[int, int]]
) -> None:
    (one,) = budgets_of(found[:1])
    group = RanksBudget(budgets_of(found[:1] * size))
    assert (group.needed(asked), group.held(asked)) == (one.needed(asked), one.held(asked))
    assert group.needed_soon(asked, sizes) == one.needed_soon(asked, sizes)
    assert (group.limit_bytes, group.largest_alone(1)) == (one.limit_bytes, one.largest_alone(1))
    lengths = [claim.num_tokens for claim in asked]
    assert group.batch_bytes(lengths) == one.batch_bytes(lengths)


def test_groups_of_rows_are_those_of_every_rank() -> None:
    budgets = budgets_of([(8, 10, 4096), (9, 10, 4096)])
    group = RanksBudget(budgets)
    assert group.max_groups == budgets[0].max_groups > 1
    group.max_groups = 1
    assert [budget.max_groups for budget in budgets] == [1, 1]


def test_a_chunk_is_no_larger_than_the_rank_with_the_least_room_for_it_allows() -> None:
    narrow, wide = budgets_of([(8, 10, 4096), (8, 10, 4_000_000)])
    asked = [Reservation(1, 4096, 4200)]
    steps = [budget.step_for(asked, 4096, 2048) for budget in (narrow, wide)]
    assert steps[0] == 2048 > steps[1]
    assert RanksBudget([narrow, wide]).step_for(asked, 4096, 2048) == steps[1]
