"""Admission by expected length, on the scheduler alone: everything finishes, and nothing is planned over the limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_backend.api.interface import TokenLogprobs
from mlx_backend.core.sequence import TokenSequence
from mlx_backend.core.step import Restore
from mlx_backend.engine.expected_length import ExpectedLength
from mlx_backend.engine.reservations import reserve_expected
from mlx_backend.kv_cache.allocation import SOON_TOKENS
from mlx_backend.kv_cache.plan import CachePlan, CacheShape, PartShape
from mlx_backend.planning.admission import Budget, Reservation
from mlx_backend.planning.memory import ModelShape
from tests.preemption import Simulation

SHAPE = ModelShape(
    model_type="small",
    num_parameters=0,
    weights_bytes=0,
    active_parameters=0,
    active_bytes=0,
    num_layers=2,
    hidden_size=8,
    widest=8,
    vocab_size=16,
    context_length=4096,
    itemsize=2,
    attention=None,
)
PART = PartShape(1, 64, 2)
PLANS = (CachePlan(CacheShape("plain", PART, PART)),) * 2
MAX_TOKENS = 3000


def budget_for(num_rows: int, num_tokens: int, plans: Sequence[CachePlan] = PLANS) -> Budget:
    """As much as so many rows of so many tokens take."""
    needed = Budget(SHAPE, plans, 0).needed([Reservation(1, 1, num_tokens)] * num_rows)
    return Budget(SHAPE, plans, needed, max_chunk=64)


ALONE = budget_for(1, 100 + MAX_TOKENS)


@dataclass(frozen=True)
class Asked:
    at: int
    num_prompt: int
    max_tokens: int
    lengths: list[int]
    leaves_at: int | None


asked = st.builds(
    Asked,
    at=st.integers(0, 100),
    num_prompt=st.integers(1, 400),
    max_tokens=st.sampled_from([1, 40, 700, MAX_TOKENS]),
    lengths=st.lists(st.integers(1, 100) | st.integers(1, MAX_TOKENS), min_size=1, max_size=3),
    leaves_at=st.none() | st.integers(1, 150),
)


def fits_alone(budget: Budget, each: Asked) -> bool:
    total = each.num_prompt + each.max_tokens
    alone = Reservation(len(each.lengths), each.num_prompt, total)
    return budget.admits([alone]) and total <= budget.largest_alone(1)


@given(
    requests=st.lists(asked, min_size=1, max_size=10),
    num_rows=st.integers(2, 5),
    max_rows=st.integers(1, 8),
)
@settings(deadline=None, max_examples=60)
def test_everything_finishes_and_the_oldest_never_leaves(requests: list[Asked], num_rows: int, max_rows: int) -> None:
    """The simulation itself asserts that nothing exceeds the limit, and that the oldest does not leave."""
    budget = budget_for(num_rows, MAX_TOKENS)
    requests = [each for each in requests if fits_alone(budget, each)]
    target = Simulation(budget, max_rows)
    all_asked: list[tuple[Asked, list[TokenSequence]]] = []
    for turn in range(3000):
        for each in requests:
            if each.at == turn:
                group = target.arrive(each.num_prompt, each.max_tokens, each.lengths)
                all_asked.append((each, list(group.sequences)))
        for each, sequences in all_asked:
            if each.leaves_at is not None and turn == each.at + each.leaves_at:
                target.end(sequences[0])
        target.step()
        if turn > 100 and not target.scheduler.has_work:
            break
    assert not target.scheduler.has_work, "some sequence never ends"
    for each, sequences in all_asked:
        for place, sequence in enumerate(sequences):
            written = target.delivered[sequence.id]
            assert written == list(range(len(written))), "a token is missing or told twice"
            if place or each.leaves_at is None:
                assert len(written) == target.lengths[sequence.id]
    target.step()
    assert not target.rows, "a runner would hold a row for ever"
    # each preemption follows a step of SOON_TOKENS that it or an older request took beyond what was expected
    most = sum(len(each.lengths) * (each.max_tokens // SOON_TOKENS + 1) for each in requests)
    assert all(number <= most for number in target.preempted.values())


def served(num_requests: int, length: int, plans: Sequence[CachePlan] = PLANS) -> Simulation:
    """Requests that all become longer than is expected of them, in the order of their coming."""
    target = Simulation(budget_for(4, MAX_TOKENS, plans))
    for _ in range(num_requests):
        target.arrive(10, MAX_TOKENS, [length])
    for _ in range(4):
        target.step()
    return target


def test_more_are_let_in_than_fit_by_their_worst_case() -> None:
    assert len(served(12, 100).scheduler.running) > 4


def test_the_newest_leave_and_come_back_in_their_order_before_those_that_never_ran() -> None:
    target = served(12, 2500)
    ran = list(target.scheduler.running)
    target.run(lambda: bool(target.preempted))
    waiting = [sequence for group in target.scheduler.waiting for sequence in group.sequences]
    num_left = len(target.preempted)
    assert 0 < num_left == target.scheduler.num_preemptions < len(ran)
    assert waiting[:num_left] == ran[-num_left:]
    assert all(sequence.output_ids == [] for sequence in waiting[num_left:])
    assert target.scheduler.running == ran[:-num_left]
    assert all(group.num_preemptions == 1 for group in [sequence.group for sequence in waiting[:num_left]])
    target.run(lambda: not target.scheduler.has_work)
    assert {len(written) for written in target.delivered.values()} == {2500}
    assert target.scheduler.num_recomputed_tokens > 0


def test_every_preemption_doubles_what_is_reserved_for_the_output_until_the_worst_case() -> None:
    lengths = ExpectedLength()
    (group,) = [Simulation(ALONE).arrive(10, MAX_TOKENS, [5])]
    found = []
    for group.num_preemptions in range(40):
        found.append(reserve_expected(group, lengths).num_tokens - 10)
    assert found[1:4] == [min(MAX_TOKENS, factor * found[0]) for factor in (2, 4, 8)]
    assert found[-1] == MAX_TOKENS


def test_of_several_continuations_only_as_many_leave_as_must() -> None:
    target = Simulation(budget_for(4, MAX_TOKENS))
    target.arrive(10, MAX_TOKENS, [2900])
    wide = target.arrive(10, MAX_TOKENS, [2900] * 4)
    target.arrive(10, MAX_TOKENS, [2900] * 2)
    sequences = list(wide.sequences)
    target.run(lambda: any(sequence.id in target.preempted for sequence in sequences))
    assert [sequence.id in target.preempted for sequence in sequences] == [False, False, False, True]
    target.run(lambda: not target.scheduler.has_work)
    assert {len(written) for written in target.delivered.values()} == {2900}


def test_a_prompt_that_leaves_half_computed_is_computed_again_and_counted_once() -> None:
    target = Simulation(budget_for(2, MAX_TOKENS))
    group = target.arrive(300, 10, [10, 10])
    target.scheduler.schedule()
    group.num_computed_tokens = group.num_cached_tokens = 100
    group.logprobs = [TokenLogprobs(-1.0)]
    first_wait_s = group.queue_time_s
    target.scheduler.preempt([list(group.sequences)])
    assert (group.num_computed_tokens, group.logprobs, list(target.scheduler.waiting)) == (0, [], [group])
    assert target.scheduler.schedule().dropped == (group.id,)
    target.scheduler.schedule()
    assert group.queue_time_s == first_wait_s is not None
    target.scheduler.computed(group.chunk(0, 150, Restore((), with_state=False)))
    assert group.num_cached_tokens == 150
    target.scheduler.computed(group.chunk(150, 299))
    assert target.scheduler.num_recomputed_tokens == 0
    target.scheduler.preempt([list(group.sequences)])
    for _ in range(2):
        target.scheduler.schedule()
    target.scheduler.computed(group.chunk(0, 299))
    assert (target.scheduler.num_recomputed_tokens, group.num_cached_tokens) == (299, 150)


def test_what_is_free_for_what_leaves_is_free_with_its_rows_and_without() -> None:
    wide = PartShape(1, 512, 2)  # large layers are moved one by one, so that moving takes little beside what is held
    target = served(12, 2500, [CachePlan(CacheShape("plain", wide, wide))] * 16)
    for _ in range(1000):
        if target.preempted:
            break
        held = target.budget.held(target.held_now())
        leaving, free = target.scheduler.overflow(held)
        if leaving:
            assert 0 < free <= target.budget.limit_bytes - held
            assert target.scheduler.overflow(target.budget.limit_bytes)[1] == 0
        target.step()


def test_what_leaves_with_a_step_comes_back_with_the_next_one() -> None:
    """With the same step it would take the token that is on its way to its former row for its own."""
    simulation = Simulation(budget_for(4, MAX_TOKENS))
    target = simulation.scheduler
    for _ in range(2):
        simulation.arrive(1, 10, [10])
    target.started(target.schedule())
    newest = target.running[-1]
    target.preempt([[newest]])
    plan = target.schedule()
    assert plan.ended == (newest.id,) and newest.id not in plan.decodes
    assert newest.id in target.schedule().decodes
