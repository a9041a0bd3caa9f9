"""The budget with a draft model: whatever is admitted has room for its rows, too."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.kv_cache.plan import CachePlan, CacheShape, PartShape
from mlx_backend.planning.admission import Budget, Reservation
from mlx_backend.planning.draft_budget import DraftBudget
from mlx_backend.planning.memory import ModelShape, batch_bytes, decode_bytes, kv_bytes
from tests.mlx_backend.planning.test_admission import PLANS, SHAPE

PART = PartShape(num_heads=2, dim=64, itemsize=2)
DRAFT_PLANS = (CachePlan(CacheShape("plain", PART, PART)),) * 3
DRAFT: ModelShape = replace(SHAPE, num_layers=3, hidden_size=128, widest=10**8, context_length=4000)
LIMIT = 20 * 10**9

claims = st.lists(
    st.builds(
        lambda rows, prompt, more, done: Reservation(rows, prompt, prompt + more, is_prefilled=done),
        st.integers(1, 4),
        st.integers(1, 5000),
        st.integers(1, 3000),
        st.booleans(),
    ),
    max_size=5,
)


def budget() -> DraftBudget:
    return DraftBudget(SHAPE, PLANS, LIMIT, draft_shape=DRAFT, draft_plans=DRAFT_PLANS, max_drafts=8)


@given(claims)
def test_the_draft_model_has_a_row_for_every_row(found: list[Reservation]) -> None:
    alone, both = Budget(SHAPE, PLANS, LIMIT, max_drafts=8), budget()
    lengths = [min(claim.num_tokens, DRAFT.context_length) for claim in found for _ in range(claim.num_rows)]
    own = sum(batch_bytes(DRAFT_PLANS, 1, length) for length in lengths)
    assert both.held(found) >= alone.held(found) + own
    assert both.needed(found) >= alone.needed(found) + own
    if lengths:  # one row's caches beside its place in the batch, and a step of all of them
        longest = max(lengths)
        step = decode_bytes(DRAFT, DRAFT_PLANS, longest, len(lengths), own)
        assert both.needed(found) >= both.held(found) + kv_bytes(DRAFT_PLANS, longest) + step
    assert both.needed([*found, Reservation(1, 10, 20)]) >= both.needed(found)
