"""What the scheduler makes of what is known of a prompt, and that to restore stalls nobody longer than is promised."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.api.interface import SchedulerConfig
from mlx_backend.core.sequence import SequenceGroup
from mlx_backend.core.step import Piece, PromptId, Restore, StepPlan
from mlx_backend.engine.scheduler import Scheduler
from mlx_backend.engine.throughput import ThroughputEstimate
from mlx_backend.prefix_cache.prefix_match import PrefixMatch
from tests.mlx_backend.prefix_cache.rooms import prompt

TOKEN_S = 0.001
STALL_S = 0.1
PLANNED_S = 0.6 * STALL_S


def paced(restored_token_s: float | None) -> ThroughputEstimate:
    pace = ThroughputEstimate()
    for start in (0, 300, 600, 1200, 2400, 5000, 10_000):
        pace.observe_chunk(start, 100, 100 * TOKEN_S)
    if restored_token_s is not None:
        pace.observe_chunk(0, 100, 100 * restored_token_s, is_known=True)
    return pace


def restore(start: int, stop: int) -> Restore:
    """One block that has all of it."""
    return Restore((Piece(7, start, start, stop),), with_state=False)


class Rooms:
    """A scheduler that is told of each prompt what `known` says. Implements `scheduler.PrefixView`."""

    def __init__(self, restored_token_s: float | None = 0.0001, max_chunk_tokens: int = 2048) -> None:
        self.known: dict[PromptId, PrefixMatch] = {}
        self.gone: set[PromptId] = set()
        """Prompts whose blocks are not there, whatever was said of them."""
        config = SchedulerConfig(max_stall_s=STALL_S, max_chunk_tokens=max_chunk_tokens)
        self.pace = paced(restored_token_s)
        self.scheduler = Scheduler(config, self.pace, 8, prefixes=self)

    def match(self, group: SequenceGroup) -> PrefixMatch:
        return self.known.get(group.id, PrefixMatch())

    def pieces(self, group: SequenceGroup, stop: int) -> Restore | None:
        start = group.num_computed_tokens
        assert start < stop <= self.known[group.id].restorable_until
        return None if group.id in self.gone else restore(start, stop)

    def sizes(self, plan: StepPlan) -> Mapping[SequenceGroup, tuple[int, bool]]:
        """Of each prompt's chunk: its tokens, and whether it is restored."""
        found = {}
        for chunk in plan.chunks:
            group = self.scheduler.prompt(chunk.prompt)
            assert group is not None
            assert chunk.start == group.num_computed_tokens
            assert chunk.token_ids == group.token_ids(chunk.start, chunk.stop)
            assert chunk.restore in (None, restore(chunk.start, chunk.stop))
            found[group] = (chunk.num_tokens, chunk.restore is not None)
        return found

    def plan(self) -> Mapping[SequenceGroup, tuple[int, bool]]:
        return self.sizes(self.scheduler.schedule())

    def add(self, length: int = 5000, **known: object) -> SequenceGroup:
        group = prompt([1] * length)
        self.known[group.id] = PrefixMatch(**known)  # type: ignore[arg-type]
        self.scheduler.add(group)
        return group

    def somebody_decodes(self) -> None:
        self.scheduler.add(prompt([1], max_tokens=100_000))
        self.scheduler.schedule()
        assert self.scheduler.running


def test_what_is_known_is_restored_and_what_is_not_is_computed() -> None:
    rooms = Rooms()
    mine = rooms.add(2000, restorable_until=1500)
    assert rooms.plan()[mine] == (1500, True)
    mine.num_computed_tokens = 1500
    ((size, is_known),) = rooms.plan().values()
    assert not is_known
    assert size <= 499


@pytest.mark.parametrize("restored_token_s", [1e-5, 1e-4, 1e-3, 1e-2])
def test_to_restore_beside_rows_takes_no_longer_than_the_promised_stall(restored_token_s: float) -> None:
    rooms = Rooms(restored_token_s)
    rooms.somebody_decodes()
    mine = rooms.add(5000, restorable_until=4999)
    plan = rooms.scheduler.schedule()
    size, is_known = rooms.sizes(plan)[mine]
    assert is_known
    assert size * restored_token_s <= PLANNED_S * 1.0001
    assert size == min(2048, int(PLANNED_S / restored_token_s + 1e-9)) or size * restored_token_s > 0.98 * PLANNED_S


def test_alone_it_may_take_longer() -> None:
    rooms = Rooms(0.001)
    mine = rooms.add(5000, restorable_until=4999)
    assert rooms.plan()[mine][0] > PLANNED_S / 0.001


@given(
    restored_token_s=st.floats(1e-6, 0.01),
    decode_s=st.floats(0, 0.2),
    prompts=st.lists(st.tuples(st.integers(2, 5000), st.floats(0, 1)), min_size=1, max_size=6),
)
def test_all_chunks_of_a_turn_together_keep_the_promise(
    restored_token_s: float, decode_s: float, prompts: list[tuple[int, float]]
) -> None:
    rooms = Rooms(restored_token_s)
    if decode_s:
        rooms.pace.observe_decode(decode_s)
    rooms.somebody_decodes()
    for length, share in prompts:
        rooms.add(length, restorable_until=int((length - 1) * share))
    plan = rooms.scheduler.schedule()
    cost = [chunk.num_tokens * (TOKEN_S if chunk.restore is None else restored_token_s) for chunk in plan.chunks]
    least = max(restored_token_s, TOKEN_S)  # a chunk has a token at least
    assert sum(cost) <= max(PLANNED_S - decode_s, rooms.pace.least_chunk_s, rooms.pace.efficient_chunk_s) + least + 1e-9
    assert plan.chunks


def test_before_anything_was_measured_little_is_restored_and_nothing_beside_it() -> None:
    rooms = Rooms(None)
    rooms.somebody_decodes()
    for _ in range(3):
        rooms.add(5000, restorable_until=4999)
    (chunk,) = rooms.scheduler.schedule().chunks
    assert chunk.restore is not None
    assert chunk.num_tokens <= 256


def test_a_restoring_that_measured_dear_makes_the_next_one_smaller() -> None:
    rooms = Rooms(0.0001)
    rooms.somebody_decodes()
    mine = rooms.add(5000, restorable_until=4999)
    before = rooms.plan()[mine][0]
    rooms.pace.observe_chunk(0, before, before * 0.001, is_known=True)
    after = rooms.plan()[mine][0]
    assert after < before
    assert rooms.pace.token_s(0) == TOKEN_S  # of computing it says nothing


def test_restoring_costs_nothing_where_it_measured_so() -> None:
    pace = paced(0.0)
    assert pace.restorable_for(0.0, 500) == 500


def test_of_two_that_would_compute_the_same_one_waits_for_the_other() -> None:
    rooms = Rooms(max_chunk_tokens=16)
    first, second, other = rooms.add(key=b"same"), rooms.add(key=b"same"), rooms.add(key=b"other")
    assert set(rooms.plan()) == {first, other}
    assert not rooms.scheduler.is_blocked
    assert second.num_computed_tokens == 0


def test_those_of_whom_nothing_is_known_do_not_wait_for_each_other() -> None:
    rooms = Rooms(max_chunk_tokens=16)
    assert set(rooms.plan()) == set()
    prompts = {rooms.add(), rooms.add()}
    assert set(rooms.plan()) == prompts


def test_a_chunk_ends_where_it_is_to() -> None:
    rooms = Rooms()
    mine = rooms.add(500, stop_at=7)
    assert rooms.plan()[mine] == (7, False)


def test_who_waits_for_the_disk_holds_up_nobody() -> None:
    rooms = Rooms()
    waiting, other = rooms.add(waits=True), rooms.add(100)
    assert set(rooms.plan()) == {other}
    assert not rooms.scheduler.is_blocked
    other.num_computed_tokens = 99
    for sequence in other.sequences:
        rooms.scheduler.end(sequence)
    assert rooms.scheduler.schedule().chunks == ()
    assert rooms.scheduler.is_blocked
    rooms.known[waiting.id] = PrefixMatch(restorable_until=50)
    assert rooms.plan() == {waiting: (50, True)}
    assert not rooms.scheduler.is_blocked


def test_what_cannot_be_restored_after_all_is_computed() -> None:
    rooms = Rooms()
    mine = rooms.add(50, restorable_until=20)
    rooms.gone.add(mine.id)
    assert rooms.plan() == {mine: (49, False)}


def test_who_starts_again_is_computed_from_its_first_token_and_the_runner_lets_go_of_the_rest() -> None:
    rooms = Rooms()
    mine = rooms.add(50, stop_at=7, starts_again=True)
    mine.num_computed_tokens = mine.num_cached_tokens = 30
    plan = rooms.scheduler.schedule()
    assert rooms.sizes(plan) == {mine: (7, False)}
    assert plan.dropped == (mine.id,)
    assert mine.num_cached_tokens == 0
