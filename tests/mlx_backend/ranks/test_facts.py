"""What ranks say of their shares arrives whole, and comes to what holds for all of them. No MLX."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_backend.api.interface import KVCacheReport, MemoryReport, ModelInfo
from mlx_backend.core.membership import Membership
from mlx_backend.kv_cache.plan import CachePlan, CacheShape, PartShape, Precision
from mlx_backend.planning.admission import Budget, Reservation
from mlx_backend.planning.memory import AttentionShape, ModelShape
from mlx_backend.ranks import messages
from mlx_backend.ranks.facts import describe_link, differences, facts, read_budget, shared_info

SHAPE = ModelShape(
    model_type="llama",
    num_parameters=8,
    weights_bytes=5,
    active_parameters=8,
    active_bytes=5,
    num_layers=3,
    hidden_size=64,
    widest=128,
    vocab_size=320,
    context_length=4096,
    itemsize=2,
    attention=AttentionShape(num_heads=4, key_dim=16, value_dim=16),
)


def sent(info: ModelInfo, budget: Budget | None = None) -> dict[str, Any]:
    """What rank 0 reads of the facts of another rank."""
    message: dict[str, Any] = messages.read(messages.write({"say": "loaded", "facts": facts(info, budget, None)}))
    found: dict[str, Any] = message["facts"]
    return found


def info_of(context: int = 4096, *, weights: int = 10, limit: int | None = None, layers: int = 2) -> ModelInfo:
    memory = None
    if limit is not None:
        memory = MemoryReport(limit_bytes=limit, limit_basis="a test", weights_bytes=weights, reserve_bytes=1)
    return ModelInfo(
        context_limit=context,
        vocab_size=320,
        weights_bytes=weights,
        memory=memory,
        kv_caches=(KVCacheReport(kind="plain", num_layers=layers, bytes_per_token=64),),
    )


@settings(max_examples=25)
@given(
    st.integers(1, 8),
    st.sampled_from([None, Precision(4, 32), Precision(8, 64)]),
    st.integers(0, 10**12),
    st.booleans(),
    st.integers(1, 8),
)
def test_the_budget_of_another_rank_is_the_same_here(
    layers: int, precision: Precision | None, limit: int, pads: bool, groups: int
) -> None:
    part = PartShape(num_heads=2, dim=64, itemsize=2)
    plans = [CachePlan(CacheShape("plain", part, part), precision, precision, start=4 * (precision is not None))]
    budget = Budget(SHAPE, plans * layers, limit, max_chunk=512, has_fused=False, pads_chunks=pads)
    budget.max_groups = groups
    found = read_budget(sent(info_of(), budget)["budget"])
    assert found.fields() == budget.fields()
    claims = [Reservation(2, 100, 700), Reservation(1, 3000, 3001)]
    assert (found.needed(claims), found.held(claims)) == (budget.needed(claims), budget.held(claims))


@pytest.mark.parametrize(
    "changes",
    [{"limit_bytes": "1"}, {"shape": None}, {"plans": [{"shape": 1}]}, {"new": 1}, {"has_fused": {"type": 1}}],
)
def test_a_budget_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    fields = {**dataclasses.asdict(Budget(SHAPE, [], 10).fields()), **changes}
    with pytest.raises(ValueError, match="version"):
        read_budget(fields)


def test_ranks_that_found_different_things_say_which() -> None:
    assert differences(sent(info_of()), sent(info_of(17, weights=9))) == []
    other = sent(dataclasses.replace(info_of(), is_batched=False))
    assert differences(sent(info_of()), other) == ["is_batched: True and False"]


def test_what_holds_for_all_ranks_is_what_the_fullest_has_room_for() -> None:
    own = info_of(4096, weights=40, limit=100, layers=3)
    ranks = [sent(own), sent(info_of(1000, weights=90, limit=100, layers=2))]
    shared = shared_info(own, ranks, Membership(0, ("127.0.0.1:1", "127.0.0.1:2"), "pipeline"))
    assert (shared.context_limit, shared.context_limited_by) == (1000, "memory")
    assert shared.memory is not None and shared.ranks is not None
    assert shared.weights_bytes == shared.memory.weights_bytes == 90
    assert [(rank.num_layers, rank.weights_bytes, rank.free_bytes) for rank in shared.ranks.ranks] == [
        (3, 40, 59),
        (2, 90, 9),
    ]
    assert [rank.kv_bytes_per_token for rank in shared.ranks.ranks] == [192, 128]


def test_what_is_not_bounded_stays_so() -> None:
    own = info_of()
    shared = shared_info(own, [sent(own), sent(own)], Membership(0, ("10.0.0.1:1", "10.0.0.2:1"), "tensor"))
    assert (shared.context_limit, shared.context_limited_by, shared.memory) == (4096, "model", None)
    assert shared.ranks is not None and shared.ranks.ranks[1].limit_bytes is None


def test_the_link_is_named_by_where_the_ranks_are() -> None:
    assert describe_link(Membership(0, ("127.0.0.1:1", "127.0.0.1:2"), "tensor")).startswith("loopback")
    assert describe_link(Membership(0, ("127.0.0.1:1", "10.0.0.2:2"), "tensor")).startswith("TCP")
    several = Membership(0, ("10.0.0.1:1", "10.0.0.2:1"), "tensor", further=(("10.0.1.1:1",), ("10.0.1.2:1",)))
    assert describe_link(several) == "TCP (MLX's ring, 2 connections)"
    rdma = ((None, "rdma_en5"), ("rdma_en5", None))
    assert describe_link(Membership(0, ("10.0.0.1:1", "10.0.0.2:2"), "tensor", rdma=rdma)).startswith("RDMA")
