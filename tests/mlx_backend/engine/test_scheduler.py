from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from mlx_backend.api.interface import GenerationRequest, SchedulerConfig
from mlx_backend.core.sequence import SequenceGroup, Status, TokenSequence, build_groups
from mlx_backend.core.step import Chunk, Restore, StepPlan
from mlx_backend.engine.reservations import largest
from mlx_backend.engine.scheduler import Scheduler
from mlx_backend.engine.throughput import ThroughputEstimate
from mlx_backend.planning.admission import Reservation
from mlx_backend.prefix_cache.prefix_match import PrefixMatch

MAX_ROWS = 4


def prompt(num_tokens: int, n: int = 1, max_tokens: int = 8) -> SequenceGroup:
    asked = GenerationRequest(request_id="x", prompt_ids=(1,) * num_tokens, max_tokens=max_tokens, n=n)
    return build_groups([asked])[0]


def decoding(target: Scheduler, plan: StepPlan) -> list[TokenSequence]:
    """The sequences that decode in a plan."""
    found = target.rows(plan.decodes)
    assert len(found) == len(plan.decodes)
    return found


def claims_of(target: Scheduler) -> list[Reservation]:
    """What the requests that are admitted are expected to come to."""
    return target._claims(target._admitted.values())


def prompt_of(target: Scheduler, chunk: Chunk) -> SequenceGroup:
    found = target.prompt(chunk.prompt)
    assert found is not None
    return found


def scheduler(max_rows: int = MAX_ROWS, token_s: float | None = 0.001, **config: float) -> Scheduler:
    pace = ThroughputEstimate()
    if token_s is not None:
        for start in (0, 300, 600, 1200, 2400, 5000, 10_000):
            pace.observe_chunk(start, 100, 100 * token_s)
    return Scheduler(SchedulerConfig(**config), pace, max_rows)  # type: ignore[arg-type]


def compute(target: Scheduler, plan: StepPlan) -> None:
    target.started(plan)
    for sequence in decoding(target, plan):
        sequence.output_ids.append(1)
    for chunk in plan.chunks:
        target.computed(chunk)


def test_a_prompt_of_one_token_decodes_at_once() -> None:
    target = scheduler()
    target.add(prompt(1))
    plan = target.schedule()
    assert len(plan.decodes) == 1
    assert plan.chunks == ()


def test_the_last_prompt_token_is_left_to_decoding() -> None:
    target = scheduler()
    target.add(prompt(10))
    (chunk,) = target.schedule().chunks
    assert (chunk.start, chunk.num_tokens) == (0, 9)
    target.computed(chunk)
    assert len(target.schedule().decodes) == 1


def test_n_sequences_come_of_one_prefill() -> None:
    target = scheduler()
    target.add(prompt(10, n=3))
    compute(target, target.schedule())
    assert len(target.schedule().decodes) == 3


def test_a_chunk_beside_decodes_fits_the_stall_and_alone_may_be_longer() -> None:
    target = scheduler(max_stall_s=0.1)
    target.add(prompt(5000))
    (alone,) = target.schedule().chunks
    target.add(prompt(1))
    plan = target.schedule()
    plan = target.schedule()
    assert len(plan.decodes) == 1
    assert plan.chunks[0].num_tokens <= 60 < alone.num_tokens


def test_a_short_prompt_overtakes_a_long_one_within_two_turns() -> None:
    target = scheduler(max_stall_s=0.1)
    target.add(prompt(1, max_tokens=10_000))  # somebody decodes, so that chunks are small
    target.add(prompt(5000))
    compute(target, target.schedule())
    short = prompt(20)
    target.add(short)
    for _ in range(2):
        compute(target, target.schedule())
    assert short.num_remaining_tokens == 0


def test_without_a_measurement_one_small_chunk_is_planned() -> None:
    target = scheduler(token_s=None)
    target.add(prompt(500))
    target.add(prompt(500))
    (chunk,) = target.schedule().chunks
    assert chunk.num_tokens == 32


def test_more_sequences_than_rows_are_served_in_turn() -> None:
    target = scheduler(max_rows=2)
    wide = prompt(10, n=5, max_tokens=1)
    target.add(wide)
    served: set[TokenSequence] = set()
    for _ in range(10):
        plan = target.schedule()
        assert len(target.running) <= 2
        compute(target, plan)
        for sequence in decoding(target, plan):
            served.add(sequence)
            target.end(sequence)
    assert len(served) == 5
    assert not target.has_work


def test_a_sequence_whose_last_token_is_in_flight_is_not_started_again() -> None:
    """Its tokens are counted as they are started, not as they are read."""
    target = scheduler()
    target.add(prompt(1, max_tokens=2))
    plan = target.schedule()
    (sequence,) = decoding(target, plan)
    target.started(plan)  # the first is on its way
    following = target.schedule()
    assert following.decodes == (sequence.id,)
    target.started(following)
    assert sequence.output_ids == []
    assert target.schedule().decodes == ()
    assert target.running == [sequence]


def test_a_batch_is_filled_to_its_last_row_and_no_further() -> None:
    target = scheduler(max_rows=3)
    for _ in range(5):
        target.add(prompt(1))
    assert len(target.schedule().decodes) == 3
    assert len(target.waiting) == 2
    target.end(target.running[0])
    assert len(target.schedule().decodes) == 3
    assert len(target.waiting) == 1


def test_choices_fill_the_rows_that_are_free() -> None:
    target = scheduler(max_rows=4)
    target.add(prompt(1))
    target.add(prompt(10, n=3))
    target.add(prompt(10))
    compute(target, target.schedule())
    assert len(target.schedule().decodes) == 4
    assert len(target.waiting) == 1


def test_who_lost_the_rows_comes_back_in_order_and_before_all_others() -> None:
    target = scheduler()
    several = [prompt(place + 1) for place in range(MAX_ROWS)]
    late = prompt(50)
    for each in (*several, late):
        target.add(each)
    for _ in range(3):
        compute(target, target.schedule())
    ran = list(target.running)
    assert len(ran) == MAX_ROWS
    ran[0].num_started_tokens += 1  # on its way, and lost
    target.recompute()
    assert not target.running
    order = list(target.waiting)
    assert [each.sequences[0] for each in order[:-1]] == ran
    assert order[-1] is late
    assert all(each.num_started_tokens == len(each.output_ids) > 0 for each in ran)
    assert [each.num_tokens for each in order[:-1]] == [len(s.request.prompt_ids) + len(s.output_ids) for s in ran]


def test_a_prompt_that_is_complete_makes_those_behind_it_short() -> None:
    """Alone they may take several stalls; from the end of the first on somebody waits for a first token."""
    target = scheduler(max_stall_s=0.1, max_chunk_tokens=10_000)
    target.add(prompt(21))
    target.add(prompt(5000))
    first, second = target.schedule().chunks
    assert first.num_tokens == 20
    assert second.num_tokens <= 60
    alone = scheduler(max_stall_s=0.1, max_chunk_tokens=10_000)
    alone.add(prompt(5000))
    assert alone.schedule().chunks[0].num_tokens > 200


@pytest.mark.parametrize("num_rows", [2, 9])
def test_one_that_is_wider_than_all_rows_is_let_in_alone(num_rows: int) -> None:
    target = scheduler(max_rows=num_rows)
    target.add(prompt(1))
    target.add(prompt(1, n=10))
    (only,) = decoding(target, target.schedule())
    assert len(target.waiting) == 1
    target.end(only)
    assert len(target.schedule().decodes) == num_rows


def test_memory_is_promised_to_who_is_let_in_until_the_last_of_them_has_ended() -> None:
    target = scheduler(max_rows=3)
    first, second, third = prompt(10, n=2), prompt(20), prompt(30)
    for each in (first, second, third):
        target.add(each)
    compute(target, target.schedule())
    assert [(claim.num_rows, claim.num_prompt_tokens) for claim in claims_of(target)] == [(2, 10), (1, 20)]
    target.end(first.sequences[0])
    assert [claim.num_rows for claim in claims_of(target)] == [1, 1]
    target.end(first.sequences[1])
    assert [claim.num_prompt_tokens for claim in claims_of(target)] == [20]
    target.end(third.sequences[0])  # which waits
    target.end(second.sequences[0])
    assert claims_of(target) == [] and not target.has_work


class Known:
    """What is known of a prompt, by its length."""

    def __init__(self, matches: dict[int, PrefixMatch]) -> None:
        self._outlooks = matches

    def match(self, group: SequenceGroup) -> PrefixMatch:
        return self._outlooks.get(group.num_prompt_tokens, PrefixMatch())

    def pieces(self, group: SequenceGroup, stop: int) -> Restore:
        return Restore((), with_state=False)


def looking(matches: dict[int, PrefixMatch], **config: float) -> Scheduler:
    pace = ThroughputEstimate()
    pace.observe_chunk(0, 100, 0.1)
    pace.observe_chunk(0, 100, 0.001, is_known=True)
    return Scheduler(
        SchedulerConfig(**config),  # type: ignore[arg-type]
        pace,
        MAX_ROWS,
        prefixes=Known(matches),
    )


def test_what_is_known_is_restored_and_the_rest_computed_up_to_where_a_snapshot_is() -> None:
    target = looking({100: PrefixMatch(restorable_until=64, stop_at=80)})
    target.add(prompt(100))
    (chunk,) = target.schedule().chunks
    assert (chunk.start, chunk.num_tokens, chunk.restore is not None) == (0, 64, True)
    target.computed(chunk)
    (chunk,) = target.schedule().chunks
    assert (chunk.start, chunk.num_tokens, chunk.restore is not None) == (64, 16, False)


def test_one_that_waits_for_the_disk_lets_others_by() -> None:
    target = looking({100: PrefixMatch(waits=True)})
    target.add(prompt(100))
    target.add(prompt(50))
    for _ in range(2):  # whoever is first in a turn
        (chunk,) = target.schedule().chunks
        assert prompt_of(target, chunk).num_prompt_tokens == 50
    assert not target.is_blocked
    target.end(prompt_of(target, chunk).sequences[0])
    assert target.schedule().chunks == ()
    assert target.is_blocked


def test_of_two_that_begin_alike_one_is_computed() -> None:
    target = looking({100: PrefixMatch(key=b"a"), 50: PrefixMatch(key=b"a"), 70: PrefixMatch(key=b"b")}, max_stall_s=10)
    for length in (100, 50, 70):
        target.add(prompt(length))
    planned = [prompt_of(target, chunk).num_prompt_tokens for chunk in target.schedule().chunks]
    assert planned == [100, 70]


class Machine(RuleBasedStateMachine):
    """Any arrivals, aborts and turns: nobody is lost, nobody is computed twice, bounds hold."""

    prompts = Bundle("prompts")

    def __init__(self) -> None:
        super().__init__()
        self.target = scheduler(max_stall_s=0.05, max_chunk_tokens=64)
        self.all: list[TokenSequence] = []
        self.rows: set[int] = set()
        self.held: set[int] = set()
        """What a runner would hold by now: rows, and prompts with a KV cache."""
        self.oldest: tuple[SequenceGroup, int, int] | None = None

    @rule(target=prompts, num_tokens=st.integers(1, 300), n=st.integers(1, 6), max_tokens=st.integers(1, 5))
    def arrive(self, num_tokens: int, n: int, max_tokens: int) -> list[TokenSequence]:
        group = prompt(num_tokens, n, max_tokens)
        self.all += group.sequences
        self.target.add(group)
        return list(group.sequences)

    @rule(sequences=prompts, which=st.integers(0, 5))
    def abort(self, sequences: list[TokenSequence], which: int) -> None:
        self.target.end(sequences[which % len(sequences)])

    @rule()
    def run_out_of_memory(self) -> None:
        if not self.target.running:
            return
        victims = largest(self.target.running)
        for sequence in victims:
            self.target.end(sequence)
        self.target.recompute()
        self.rows -= {sequence.id for sequence in self.all if not sequence.has_row}
        assert not self.target.running
        assert all(s.group.num_tokens == s.num_computed_tokens + 1 for p in self.target.waiting for s in p.sequences)

    @rule()
    def turn(self) -> None:
        plan = self.target.schedule()
        assert len(set(plan.decodes)) == len(plan.decodes) <= MAX_ROWS
        assert len({chunk.prompt for chunk in plan.chunks}) == len(plan.chunks)
        for chunk in plan.chunks:
            group = prompt_of(self.target, chunk)
            assert chunk.start == group.num_computed_tokens
            assert 1 <= chunk.num_tokens <= min(64, group.num_remaining_tokens)
            assert group.is_wanted
        self.follow(plan)
        if self.target.prefilling:
            assert plan.chunks, "prompts wait and nobody computes"
        compute(self.target, plan)
        for sequence in decoding(self.target, plan):
            if sequence.num_started_tokens == sequence.request.max_tokens:
                self.target.end(sequence)

    def follow(self, plan: StepPlan) -> None:
        """Do what a runner does with its rows and prompts: it is told of all that comes and goes, once."""
        assert set(plan.ended) <= self.rows
        self.rows -= set(plan.ended)
        new = {row.id for row in plan.new_rows}
        assert not new & self.rows
        self.rows |= new
        assert set(plan.decodes) <= self.rows
        assert {row.prompt for row in plan.new_rows if len(row.prompt_ids) + len(row.output_ids) > 1} <= self.held
        self.held -= set(plan.dropped)
        self.held |= {chunk.prompt for chunk in plan.chunks}

    @invariant()
    def every_sequence_is_somewhere_once(self) -> None:
        places = [s for p in (*self.target.waiting, *self.target.prefilling) for s in p.sequences]
        pending = [s for s in places if s.status is Status.PENDING] + list(self.target.ready)
        alive = [s for s in self.all if s.status is not Status.ENDED]
        assert len(pending) + len(self.target.running) == len(alive)
        assert set(pending) | set(self.target.running) == set(alive)

    def teardown(self) -> None:
        for _ in range(5000):
            if not self.target.has_work:
                break
            self.turn()
        assert not self.target.has_work, "some sequence never ends"
        self.follow(self.target.leaving() or StepPlan())
        assert not self.rows and not self.held, "a runner would hold something for ever"


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(lengths=st.lists(st.integers(2, 2000), min_size=2, max_size=12))
@settings(deadline=None)
def test_the_oldest_prompt_gets_at_least_every_other_turn(lengths: list[int]) -> None:
    target = scheduler(max_rows=20, max_stall_s=0.05)
    target.add(prompt(1, max_tokens=10_000))
    groups = [prompt(length) for length in lengths]
    for group in groups:
        target.add(group)
    while target.prefilling or target.waiting:
        before = [(p, p.num_computed_tokens) for p in target.prefilling[:1]]
        for _ in range(2):
            compute(target, target.schedule())
        for group, computed in before:
            assert group.num_computed_tokens > computed
