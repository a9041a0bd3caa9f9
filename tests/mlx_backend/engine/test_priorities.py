"""Requests of three classes on a simulated device: the urgent ones hardly notice the others, and none starves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_backend.api.interface import PRIORITIES, GenerationRequest, Priority, SchedulerConfig
from mlx_backend.core.sequence import SequenceGroup, build_groups
from mlx_backend.core.step import StepPlan
from mlx_backend.engine.class_queue import ClassQueue
from mlx_backend.engine.priorities import DEBT_S, MOST_OWED_S, MOST_S, OPEN_S, Account, Priorities, choose_displaced
from tests.classes_of_requests import Asked, Device, Told
from tests.mlx_backend.engine.test_preemption import budget_for

BATCH = [Asked(0, "batch", 400, 60)] * 1500


def chats(priority: Priority = "normal", num: int = 14, every_s: float = 1.5) -> list[Asked]:
    return [Asked(2 + every_s * number, priority, 800, 60) for number in range(num)]


def check_all_told(told: Sequence[Told]) -> None:
    for each in told:
        assert len(each.token_at) == each.asked.num_output
        assert each.token_at == sorted(each.token_at)


def test_many_requests_of_three_classes_all_end_and_the_urgent_ones_do_not_wait() -> None:
    source = random.Random(1)
    asked = [
        Asked(
            source.uniform(0, 25),
            source.choices(PRIORITIES, (1, 2, 3))[0],
            source.randint(2, 20),
            source.randint(1, 3),
        )
        for _ in range(2500)
    ]
    device = Device(asked, max_rows=32, row_s=0.0002)
    device.run()
    check_all_told(list(device.told.values()))
    longest = {each: max(told.ttft_s for told in device.of(each)) for each in PRIORITIES}
    assert len(device.told) == 2500
    assert longest["live"] < 0.3 and longest["normal"] < 0.6
    assert longest["live"] < longest["normal"] < longest["batch"] < device.now


@pytest.mark.parametrize(("row_s", "least_share"), [(0.0001, 0.5), (0.001, 0.2), (0.004, 0.1)])
def test_a_batch_costs_a_chat_little_and_gets_what_is_left(row_s: float, least_share: float) -> None:
    alone = Device(chats(), row_s=row_s)
    alone.run()
    beside = Device([*chats(), *BATCH], row_s=row_s)
    beside.run(until=alone.now)
    only = Device(BATCH, row_s=row_s)
    only.run(until=alone.now)
    assert mean(t.ttft_s for t in beside.of("normal")) < 1.3 * mean(t.ttft_s for t in alone.of("normal"))
    assert mean(t.itl_s for t in beside.of("normal")) < 1.1 * mean(t.itl_s for t in alone.of("normal"))
    got, most = (sum(len(t.token_at) for t in each.of("batch")) for each in (beside, only))
    assert got > least_share * most
    assert not only.scheduler.priorities.num_pauses["batch"]


def test_a_batch_goes_on_beside_chats_that_never_stop() -> None:
    """Every row that it adds is dear, and there is always a chat: it gets its share all the same."""
    crowd = [Asked(0.2 * number, "live", 100, 40) for number in range(400)]
    batch = [Asked(0, "batch", 100, 40)] * 3
    device = Device([*crowd, *batch], row_s=0.01, max_rows=4, keeps=False)
    device.run(until=79)
    assert any(len(told.token_at) == 40 for told in device.of("batch"))


def test_a_batch_goes_on_beside_prompts_that_never_stop() -> None:
    prompts = [Asked(0.02 * n, "normal", 200, 1) for n in range(700)]
    device = Device([*prompts, Asked(0.5, "batch", 50, 20)], config=SchedulerConfig(batch_share=0.4))
    device.run(until=20)
    (told,) = device.of("batch")
    assert len(told.token_at) == 20


def test_a_prompt_does_not_wait_for_rows_of_a_batch_which_stay_as_they_are() -> None:
    device = Device([*[Asked(0, "batch", 10, 500)] * 4, Asked(1, "normal", 2000, 5)], row_s=0.1)
    device.run(until=1)
    scheduler, plans = device.scheduler, list[StepPlan]()
    rows, original = set(scheduler.row_ids), scheduler.schedule

    def schedule() -> StepPlan:
        plans.append(original())
        return plans[-1]

    scheduler.schedule = schedule  # type: ignore[method-assign]
    device.run(until=1.8)
    with_prompt = [plan for plan in plans if plan.chunks]
    assert with_prompt and not any(plan.decodes for plan in with_prompt)
    assert rows and rows <= set(scheduler.row_ids)


@pytest.mark.parametrize(("max_rows", "num_fitting"), [(3, 8), (8, 3)])
def test_what_needs_room_takes_that_of_a_batch_the_newest_first(max_rows: int, num_fitting: int) -> None:
    asked = [*[Asked(0, "batch", 100, 400)] * 3, Asked(1, "live", 400, 100)]
    device = Device(asked, max_rows=max_rows, budget=budget_for(num_fitting, 500))
    device.run(until=1)
    before = list(device.scheduler.running)
    assert len(before) == 3
    device.run(until=1.02)
    assert before[0] in device.scheduler.running and before[-1] not in device.scheduler.running
    device.run(until=1.3)
    (told,) = device.of("live")
    assert told.token_at
    device.run()
    check_all_told(list(device.told.values()))
    assert device.scheduler.num_preemptions == 0 < device.scheduler.priorities.num_pauses["batch"]


def test_nothing_leaves_where_that_makes_no_room() -> None:
    crowd = [Asked(0, "normal", 100, 400)] * 2
    device = Device([*crowd, Asked(0.1, "batch", 100, 50), *[Asked(0.5, "live", 300, 300)] * 2], max_rows=3)
    device.run(until=0.4)
    before = device.scheduler.priorities.num_pauses["batch"]
    device.run(until=1.0)
    live_running = [s for s in device.scheduler.running if s.request.priority == "live"]
    assert len(live_running) <= 1 and device.scheduler.priorities.num_pauses["batch"] - before <= 1
    device.run()
    check_all_told(list(device.told.values()))


asked = st.builds(
    Asked,
    at=st.floats(0, 3),
    priority=st.sampled_from(PRIORITIES),
    num_prompt=st.integers(1, 300),
    num_output=st.integers(1, 60),
)


@given(
    requests=st.lists(asked, min_size=1, max_size=25),
    row_s=st.sampled_from([0.0001, 0.002, 0.02]),
    max_rows=st.integers(1, 6),
    num_fitting=st.none() | st.integers(1, 4),
    keeps=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_everything_ends_once_whatever_comes(
    requests: list[Asked], row_s: float, max_rows: int, num_fitting: int | None, keeps: bool
) -> None:
    budget = None if num_fitting is None else budget_for(num_fitting, 400)
    device = Device(requests, row_s=row_s, max_rows=max_rows, budget=budget, keeps=keeps)

    def check() -> None:
        running = device.scheduler.running
        assert len(running) <= max_rows
        assert len({sequence.id for sequence in running}) == len(running)
        assert device.num_steps < 100_000

    device.run(check)
    assert len(device.told) == len(requests)
    check_all_told(list(device.told.values()))
    if all(each.priority == "batch" for each in requests):
        assert not any(device.scheduler.priorities.num_pauses.values())


def group(priority: Priority, n: int = 1) -> SequenceGroup:
    asked = GenerationRequest(request_id="x", prompt_ids=(1, 2), max_tokens=8, n=n, priority=priority)
    return build_groups([asked])[0]


def measured(**seconds: float) -> Priorities:
    """With steps of `of1`, `of2`, … rows measured."""
    waiting = ClassQueue()
    waiting.append(group("batch"))
    target = Priorities(0.1, {}, waiting)
    for rows, each in seconds.items():
        target.times.observe(int(rows.removeprefix("of")), each)
    return target


def test_as_many_rows_decode_as_a_step_can_have_for_a_share_more() -> None:
    target = measured(of1=0.010, of2=0.0104, of3=0.0109, of4=0.0114, of9=0.020)
    assert [target.num_rows(0, most) for most in (0, 4)] == [0, 4]
    assert [target.num_rows(1, most) for most in (1, 2, 8)] == [1, 2, 2]
    assert target.num_rows(1, 8, 3) == 3, "a number that is near is kept"
    assert target.num_rows(1, 8, 8) == 2
    assert measured(of4=0.01).num_rows(1, 8) == 0, "nothing is known of steps without them"


def test_rows_alone_are_as_many_as_a_prompt_that_comes_can_wait_for() -> None:
    target = measured(of1=0.010, of2=0.012, of4=0.020, of8=0.040)
    assert target.num_rows(0, 8) == 8, "no prompt of others has come yet"
    target.prompt_s = 0.2
    assert [target.num_rows(0, most) for most in (0, 1, 4, 8)] == [0, 1, 4, 4]
    target.prompt_s = 0.01
    assert target.num_rows(0, 8) == 1


def test_where_no_row_is_cheap_one_decodes_while_there_is_time_for_it_and_none_in_debt() -> None:
    target = measured(of1=0.010, of2=0.013)
    assert target.num_rows(1, 8) == 0
    target.account.earn(OPEN_S / 0.1)
    assert (target.num_rows(1, 8), target.num_rows(1, 0)) == (1, 0)
    target.account.spend(OPEN_S)
    assert target.num_rows(1, 8) == 0
    cheap = measured(of1=0.010, of9=0.0101)
    assert cheap.num_rows(1, 8) == 8
    cheap.account.spend(DEBT_S)
    assert cheap.num_rows(1, 8) == 0


def test_what_steps_and_chunks_of_a_batch_add_is_paid_for_and_others_earn_it() -> None:
    target = measured(of1=0.010)
    (live,), (batch,) = group("live").sequences, group("batch").sequences
    target.stepped([live], 1, 0.010)
    assert target.account.left_s == pytest.approx(0.001)
    target.stepped([live, batch], 2, 0.015)
    assert target.account.left_s == pytest.approx(0.001 + 0.001 - 0.005)
    before = target.account.left_s
    nothing_waits = Priorities(0.1, {}, ClassQueue())
    nothing_waits.times.observe(1, 0.010)
    nothing_waits.stepped([live], 1, 0.010)
    assert nothing_waits.account.left_s == 0
    target.stepped([batch], 1, 0.010)
    target.stepped([live], 2, 0.5)  # one of its rows has ended: of which class is not known
    assert target.account.left_s == before


def test_requests_make_room_the_newest_first_or_none_at_all() -> None:
    groups = [group("normal"), group("batch"), group("batch", n=2), group("batch")]
    most = {None: 4, 3: 3, 1: 1}

    def leaving(num_staying: int | None) -> list[int]:
        units = choose_displaced(groups, group("live"), lambda urgent, beside: len(beside) <= most[num_staying])
        return [groups.index(unit[0].group) for unit in units]

    assert (leaving(None), leaving(3), leaving(1)) == ([], [3], [3, 2, 1])
    assert choose_displaced(groups, group("live"), lambda urgent, beside: False) == []
    assert choose_displaced(groups, None, lambda urgent, beside: False) == []
    groups[1].is_aged = True
    assert choose_displaced(groups[:2], group("live"), lambda urgent, beside: len(beside) < 2) == []


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 3)), max_size=60))
def test_the_account_stays_in_its_bounds_and_opens_and_closes_late(moves: list[tuple[bool, float]]) -> None:
    account, left = Account(0.1), 0.0
    for earns, seconds in moves:
        before = account.is_open, account.is_in_debt
        (account.earn if earns else account.spend)(seconds)
        left = min(max(left + (0.1 * seconds if earns else -seconds), -MOST_OWED_S), MOST_S)
        assert account.left_s == pytest.approx(left)
        if before[0] != account.is_open:
            assert account.left_s >= OPEN_S if account.is_open else account.left_s <= 0
        if before[1] != account.is_in_debt:
            assert account.left_s <= -DEBT_S if account.is_in_debt else account.left_s >= DEBT_S
