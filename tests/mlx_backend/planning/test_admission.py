"""Admission by bytes: what is admitted fits, whatever comes of it; and nothing is refused that fits. No MLX."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.kv_cache.plan import CachePlan, CacheShape, PartShape
from mlx_backend.planning.admission import SMALLEST_STEP, Budget, Reservation
from mlx_backend.planning.memory import AttentionShape, ModelShape, batch_bytes, kv_bytes, prefill_bytes

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
PLANS = tuple([CachePlan(CacheShape("plain", PartShape(8, 128, 2), PartShape(8, 128, 2)))] * 32)

claims = st.builds(
    lambda rows, prompt, output, done: Reservation(rows, prompt, prompt + output, done),
    st.integers(1, 4),
    st.integers(1, 60_000),
    st.integers(1, 8000),
    st.booleans(),
)
budgets = st.integers(1, 200).map(lambda gb: Budget(SHAPE, PLANS, gb * 10**9))


@given(st.lists(claims, min_size=1, max_size=8), claims)
def test_one_more_request_never_needs_less(found: list[Reservation], more: Reservation) -> None:
    budget = Budget(SHAPE, PLANS, 0)
    assert budget.needed(found) <= budget.needed([*found, more])
    assert budget.needed(found) >= sum(kv_bytes(PLANS, claim.num_tokens) * claim.num_rows for claim in found) // 2


@given(budgets, st.lists(claims, min_size=1, max_size=8))
def test_what_is_admitted_leaves_room_for_every_chunk(budget: Budget, found: list[Reservation]) -> None:
    if not budget.admits(found):
        return
    longest = max(claim.num_prompt_tokens for claim in found)
    step = budget.step_for(found, longest, 2048)
    assert SMALLEST_STEP <= step <= 2048
    assert budget.held(found) + prefill_bytes(SHAPE, PLANS, step, longest) <= budget.limit_bytes


@given(budgets, st.integers(1, 4))
def test_the_largest_request_alone_is_admitted_and_one_token_more_is_not(budget: Budget, rows: int) -> None:
    most = budget.largest_alone(rows)
    if most:
        assert budget.admits([Reservation(rows, most, most)])
    if most < SHAPE.context_length:
        assert not budget.admits([Reservation(rows, most + 1, most + 1)])


@given(st.lists(claims, min_size=1, max_size=6), st.data())
def test_shorter_and_fewer_rows_never_hold_more(found: list[Reservation], data: st.DataObject) -> None:
    """Though with fewer columns a batch affords more spare rows."""
    budget = Budget(SHAPE, PLANS, 0)
    shorter = [replace(claim, num_tokens=data.draw(st.integers(1, claim.num_tokens))) for claim in found]
    fewer = shorter[: data.draw(st.integers(1, len(found)))]
    assert budget.held(fewer) <= budget.held(found)
    rows, longest = sum(claim.num_rows for claim in fewer), max(claim.num_tokens for claim in fewer)
    assert batch_bytes(PLANS, rows, longest) <= budget.held([replace(claim, is_prefilled=True) for claim in found])


def test_nobody_needs_nothing() -> None:
    assert Budget(SHAPE, PLANS, 0).admits([])


def test_a_prompt_in_a_row_needs_its_own_cache_no_more() -> None:
    budget = Budget(SHAPE, PLANS, 0)
    waiting, running = Reservation(1, 1000, 2000), Reservation(1, 1000, 2000, is_prefilled=True)
    assert budget.needed([waiting]) - budget.needed([running]) == kv_bytes(PLANS, 1000)


@given(st.lists(claims, max_size=4), st.lists(st.tuples(st.integers(1, 4096), st.integers(0, 60_000)), max_size=4))
def test_a_turn_with_chunks_needs_what_the_largest_of_them_takes(
    found: list[Reservation], chunks: list[tuple[int, int]]
) -> None:
    budget = Budget(SHAPE, PLANS, 0)
    ends = [(num_tokens, start + num_tokens) for num_tokens, start in chunks]
    largest = max((prefill_bytes(SHAPE, PLANS, *chunk) for chunk in ends), default=0)
    needed = budget.needed_soon(found, ends)
    assert needed >= budget.needed(found)
    assert needed >= budget.held(found) + largest
    assert needed <= max(budget.needed(found), budget.held(found) + largest)


def test_a_chunk_is_as_large_as_fits_and_no_larger() -> None:
    claims = [Reservation(1, 30_000, 31_000)]
    held = Budget(SHAPE, PLANS, 0).held(claims)
    for step, smaller in ((2048, 1536), (1536, 1024), (1024, 768), (96, SMALLEST_STEP)):
        room = prefill_bytes(SHAPE, PLANS, step, 30_000)
        assert Budget(SHAPE, PLANS, held + room).step_for(claims, 30_000, 2048) == step
        assert Budget(SHAPE, PLANS, held + room - 1).step_for(claims, 30_000, 2048) == smaller
    assert Budget(SHAPE, PLANS, held).step_for(claims, 30_000, 2048) == SMALLEST_STEP
