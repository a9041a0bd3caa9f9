"""Which chunks prompts are cut into: every token once, few sizes, within the time and the memory that there is."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_backend.api.interface import SchedulerConfig
from mlx_backend.core.step import Chunk
from mlx_backend.engine.scheduler import Scheduler
from mlx_backend.engine.throughput import ThroughputEstimate
from mlx_backend.kv_cache.plan import CachePlan, CacheShape, PartShape
from mlx_backend.planning.admission import Budget, Reservation
from mlx_backend.planning.chunk_sizes import padded, padded_sizes, round_down
from mlx_backend.planning.memory import AttentionShape, ModelShape, prefill_bytes
from mlx_backend.prefix_cache.prefix_match import PrefixMatch
from tests.mlx_backend.engine.test_scheduler import Known, prompt

PLANS = (CachePlan(CacheShape("plain", PartShape(8, 128, 2), PartShape(8, 128, 2))),) * 4
SHAPE = ModelShape(
    model_type="llama",
    num_parameters=10**9,
    weights_bytes=0,
    active_parameters=10**9,
    active_bytes=0,
    num_layers=4,
    hidden_size=4096,
    widest=14_336,
    vocab_size=32_000,
    context_length=32_768,
    itemsize=2,
    attention=AttentionShape(num_heads=32, key_dim=128, value_dim=128),
)
CONFIG = SchedulerConfig()


class Paced:
    """A scheduler over a device whose chunks take a fixed time and a time per token, before and beside decodes."""

    def __init__(
        self,
        token_s: float,
        fixed_s: float = 0.0,
        decode_s: float = 0.0,
        config: SchedulerConfig = CONFIG,
        **parts: Any,
    ) -> None:
        self.token_s, self.fixed_s, self.decode_s = token_s, fixed_s, decode_s
        self.throughput = ThroughputEstimate()
        for _ in range(20):
            self.throughput.observe_decode(decode_s)
        self.config = config
        self.scheduler = Scheduler(config, self.throughput, 4, **parts)

    def cut(self, num_tokens: int) -> list[Chunk]:
        """The chunks of a prompt of so many tokens beside whatever runs; it ends when it is computed."""
        group = prompt(num_tokens)
        self.scheduler.add(group)
        chunks: list[Chunk] = []
        while group.num_remaining_tokens:
            plan = self.scheduler.schedule()
            self.scheduler.started(plan)
            for chunk in plan.chunks:
                self.throughput.observe_chunk(
                    chunk.start, chunk.num_tokens, self.fixed_s + chunk.num_tokens * self.token_s
                )
                self.scheduler.computed(chunk)
                chunks.append(chunk)
            assert plan.chunks
        for sequence in group.sequences:
            self.scheduler.end(sequence)
        return chunks


@settings(max_examples=60, deadline=None)
@given(
    token_s=st.floats(1e-5, 1e-3),
    fixed_s=st.floats(0.0, 0.05),
    decode_s=st.floats(0.001, 0.2),
    lengths=st.lists(st.integers(2, 6000), min_size=1, max_size=6),
    beside=st.booleans(),
    max_chunk_tokens=st.sampled_from([7, 64, 1000, 2048]),
)
def test_every_token_is_in_one_chunk_and_sizes_are_of_the_ladder(
    token_s: float, fixed_s: float, decode_s: float, lengths: list[int], beside: bool, max_chunk_tokens: int
) -> None:
    config = SchedulerConfig(max_chunk_tokens=max_chunk_tokens)
    device = Paced(token_s, fixed_s, decode_s, config=config)
    if beside:
        device.scheduler.add(prompt(1, max_tokens=10**6))
        device.scheduler.schedule()
    for number, length in enumerate(lengths):
        chunks = device.cut(length)
        assert [chunk.start for chunk in chunks] == [0, *(chunk.stop for chunk in chunks[:-1])]
        assert chunks[-1].stop == length - 1
        sizes = [chunk.num_tokens for chunk in chunks]
        assert max(sizes) <= max_chunk_tokens
        assert all(size == round_down(size) or size == max_chunk_tokens for size in sizes[:-1])
        if beside and number and token_s * 4000 > fixed_s:  # by now both costs are known
            throughput = device.throughput
            least_s = max(throughput.least_chunk_s, throughput.efficient_chunk_s)
            budget_s = max(config.max_stall_s * 0.6 - decode_s, least_s)
            assert all(fixed_s + size * token_s <= 1.01 * budget_s for size in sizes if size > 1)


def test_ten_thousand_prompts_have_few_shapes_where_chunks_are_padded() -> None:
    """By their own number of tokens and by the number that they attend to; alone a prompt's chunks are whole."""
    device, source = Paced(1e-5), random.Random(5)
    device.cut(6000)  # the first ones measure
    most = device.config.max_chunk_tokens
    chunks = [chunk for _ in range(10_000) for chunk in device.cut(source.randrange(2, 2 * most))]
    sizes = {padded(chunk.num_tokens, most) for chunk in chunks}
    assert sizes <= set(padded_sizes(most)) and len(sizes) <= 16
    assert len({(padded(chunk.num_tokens, most), chunk.start) for chunk in chunks}) <= 32
    assert len({chunk.num_tokens for chunk in chunks}) > 1000  # as they would be, each of its own size


@settings(max_examples=60, deadline=None)
@given(room_tokens=st.integers(64, 2048), length=st.integers(2, 30_000), max_chunk_tokens=st.sampled_from([1000, 2048]))
def test_a_chunk_fits_the_memory_padded_or_not(room_tokens: int, length: int, max_chunk_tokens: int) -> None:
    claims = [Reservation(1, length, length + 8)]
    held = Budget(SHAPE, PLANS, 0, max_chunk=max_chunk_tokens, pads_chunks=True).held(claims)
    room = prefill_bytes(SHAPE, PLANS, room_tokens, length)
    budget = Budget(SHAPE, PLANS, held + room, max_chunk=max_chunk_tokens, pads_chunks=True)
    device = Paced(1e-5, config=SchedulerConfig(max_chunk_tokens=max_chunk_tokens), budget=budget)
    for chunk in device.cut(length):
        size = padded(chunk.num_tokens, max_chunk_tokens)
        assert prefill_bytes(SHAPE, PLANS, size, chunk.start + size) <= room or size <= 64


@pytest.mark.parametrize("stop_at", [1, 80, 100, 999])
def test_a_chunk_ends_where_a_snapshot_is_to_be(stop_at: int) -> None:
    device = Paced(1e-5, prefixes=Known({1000: PrefixMatch(stop_at=stop_at)}))
    device.cut(3000)
    group = prompt(1000)
    device.scheduler.add(group)
    (chunk,) = device.scheduler.schedule().chunks
    assert chunk.stop == stop_at


def test_padding_counts_as_computed_when_speed_is_measured() -> None:
    plain, padding = ThroughputEstimate(), ThroughputEstimate(pads_to=2048)
    for estimate in (plain, padding):
        estimate.observe_chunk(0, 1024, 1.024)
        estimate.observe_chunk(0, 1025, 1.536)  # as the 1,536 that it is padded to
    assert padding.token_s(0) == pytest.approx(0.001)
    assert (plain.token_s(0) or 0) > 0.0011
    assert padding.chunk_s(0, 1025) == pytest.approx(1.536)
