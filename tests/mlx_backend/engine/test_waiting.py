"""The waiting queue: tenants take turns, nobody starves, and one tenant sees a plain queue."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.api.errors import QueueFull, TooManyPrompts
from mlx_backend.api.interface import EngineConfig, GenerationRequest, MockConfig, SchedulerConfig
from mlx_backend.core.sequence import SequenceGroup, build_groups
from mlx_backend.engine.checks import check_number
from mlx_backend.engine.scheduler import Scheduler
from mlx_backend.engine.throughput import ThroughputEstimate
from mlx_backend.engine.waiting import WaitingQueue, has_room
from tests.engine_client import request, running


def prompt(tenant: str = "", num_tokens: int = 2) -> SequenceGroup:
    asked = GenerationRequest(request_id="x", prompt_ids=(1,) * num_tokens, max_tokens=1, tenant=tenant)
    return build_groups([asked])[0]


def filled(*tenants: str) -> WaitingQueue:
    queue = WaitingQueue()
    for tenant in tenants:
        queue.append(prompt(tenant))
    return queue


def drained(queue: WaitingQueue) -> str:
    return "".join(queue.popleft().request.tenant for _ in range(len(queue)))


def test_tenants_take_turns() -> None:
    assert drained(filled(*"aaaabbc")) == "abcabaa"


def test_who_comes_later_does_not_wait_behind_a_crowd() -> None:
    queue = filled(*"aaaaaa")
    queue.popleft()
    queue.append(prompt("b"))
    assert drained(queue) == "abaaaa"


def test_the_first_stays_first_whoever_comes() -> None:
    queue = filled("a", "b")
    first = queue.first
    queue.append(prompt("a"))
    queue.append(prompt("c"))
    assert queue.first is first
    assert queue.popleft() is first


def test_who_lost_a_place_goes_before_everybody() -> None:
    queue = filled("a", "b")
    former = prompt("b")
    queue.appendleft(former)
    assert former in queue
    assert queue.popleft() is former
    assert drained(queue) == "ab"


def test_a_tenant_that_gave_up_its_only_prompt_takes_no_turn() -> None:
    queue = filled("a", "b", "b")
    queue.remove(queue.first)
    assert (queue.first.request.tenant, len(queue), queue.count("a")) == ("b", 2, 0)
    queue.append(prompt("a"))
    assert drained(queue) == "bab"
    alone = filled("a")
    alone.remove(alone.first)
    assert not alone
    with pytest.raises(IndexError):
        alone.popleft()


@pytest.mark.parametrize(
    ("most", "there", "tenant", "fits"),
    [
        (8, "", "a", 4),  # half of all places
        (8, "aaa", "a", 1),
        (8, "aaaa", "a", 0),
        (9, "", "a", 4),
        (8, "bb", "a", 3),
        (8, "bbb", "a", 2),
        (1, "", "a", 1),  # somebody may wait at all
        (8, "bbbbbbb", "a", 1),
        (8, "bbbbbbbb", "a", 0),
        (8, "", "", 8),  # without names all are one client
        (8, "bbb", "", 5),
    ],
)
def test_places_that_a_tenant_may_take(most: int, there: str, tenant: str, fits: int) -> None:
    taken = [prompt(name) for name in there]
    for arrived in (0, len(taken) // 2, len(taken)):  # in the queue, and on their way to it
        queue = WaitingQueue()
        for each in taken[arrived:]:
            queue.append(each)
        for number in range(1, 10):
            assert has_room(queue, taken[:arrived], [prompt(tenant) for _ in range(number)], most) == (number <= fits)


def test_nobody_waits() -> None:
    assert not WaitingQueue()
    for ask in (lambda queue: queue.first, lambda queue: queue.popleft()):
        with pytest.raises(IndexError):
            ask(WaitingQueue())
    with pytest.raises(ValueError):
        filled("a").remove(prompt("a"))


Steps = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.sampled_from("abc")),
        st.tuples(st.just("lost"), st.sampled_from("abc")),
        st.tuples(st.just("next"), st.just("")),
        st.tuples(st.just("leave"), st.sampled_from("012345")),
    ),
    max_size=60,
)


@given(Steps)
def test_nobody_starves_and_nobody_is_lost(steps: list[tuple[str, str]]) -> None:
    """Whoever waits is let in after at most one of each other tenant's for each of its own before it."""
    queue, here = WaitingQueue(), list[SequenceGroup]()
    former: list[SequenceGroup] = []  # who had a place and lost it: before everybody
    may_pass: dict[int, int] = {}
    for what, which in steps:
        if what == "come":
            group = prompt(which)
            num_before = queue.count(which)
            queue.append(group)
            here.append(group)
            may_pass[id(group)] = (num_before + 1) * 3 - 1 + sum(group in here for group in former)
        elif what == "lost":
            group = prompt(which)
            queue.appendleft(group)
            here.append(group)
            former.append(group)
            may_pass = {key: value + 1 for key, value in may_pass.items()}
            may_pass[id(group)] = 0
        elif what == "next" and here:
            gone = queue.popleft()
            here.remove(gone)
            for waiting in here:
                may_pass[id(waiting)] -= 1
                assert may_pass[id(waiting)] >= 0
        elif what == "leave" and int(which) < len(here):
            gone = here.pop(int(which))
            queue.remove(gone)
            assert gone not in queue
        assert len(queue) == len(here) == len(list(queue))
        assert {id(group) for group in queue} == {id(group) for group in here}


@given(Steps)
def test_one_tenant_sees_a_plain_queue(steps: list[tuple[str, str]]) -> None:
    queue, plain = WaitingQueue(), deque[SequenceGroup]()
    for what, which in steps:
        group = prompt("")
        if what == "come":
            queue.append(group)
            plain.append(group)
        elif what == "lost":
            queue.appendleft(group)
            plain.appendleft(group)
        elif what == "next" and plain:
            assert queue.popleft() is plain.popleft()
        elif what == "leave" and int(which) < len(plain):
            gone = plain[int(which)]
            queue.remove(gone)
            plain.remove(gone)
        assert list(queue) == list(plain)
        assert not plain or queue.first is plain[0]


def test_the_scheduler_lets_tenants_in_by_turns() -> None:
    target = Scheduler(SchedulerConfig(), ThroughputEstimate(), max_rows=1)
    for tenant in "aaab":
        target.add(prompt(tenant, num_tokens=1))
    served = ""
    while target.has_work:
        for sequence in target.rows(target.schedule().decodes):
            served += sequence.request.tenant
            target.end(sequence)
    assert served == "abaa"


# --- how much of the queue one tenant may take


def fill(tenant: str, queue: WaitingQueue, most: int) -> int:
    """How many a tenant can put into the queue, one by one."""
    num = 0
    while has_room(queue, (), [prompt(tenant)], most):
        queue.append(prompt(tenant))
        num += 1
    return num


def test_without_names_the_whole_queue_is_one_clients() -> None:
    assert fill("", WaitingQueue(), 16) == 16


def test_a_tenant_leaves_as_many_places_as_it_takes() -> None:
    queue = WaitingQueue()
    assert [fill(tenant, queue, 16) for tenant in "abcd"] == [8, 4, 2, 1]
    assert len(queue) == 15


@given(st.integers(1, 40), st.integers(0, 40))
def test_whoever_has_nothing_in_a_queue_that_is_not_full_may_wait(most: int, num_waiting: int) -> None:
    queue = filled(*"a" * min(num_waiting, most - 1))
    assert has_room(queue, (), [prompt("b")], most)


def test_what_has_arrived_counts() -> None:
    arrived = [prompt("a")] * 3
    assert not has_room(WaitingQueue(), arrived, [prompt("b")], 3)
    assert not has_room(WaitingQueue(), arrived, [prompt("a")], 6)
    assert has_room(WaitingQueue(), arrived, [prompt("a")], 8)


def test_more_at_once_than_a_tenant_may_have_is_no_matter_of_waiting() -> None:
    requests = [GenerationRequest(request_id="x", prompt_ids=(1,), max_tokens=1, tenant="a")] * 5
    check_number(requests[:4], 8)
    with pytest.raises(TooManyPrompts):
        check_number(requests, 8)
    check_number(requests[:1], 1)


async def test_a_crowd_of_one_key_leaves_room_for_another() -> None:
    mock = MockConfig(itl_s=0.005)
    limits = SchedulerConfig(max_num_seqs=1, max_waiting=8)
    async with running(EngineConfig(model_path="mock", backend="mock", mock=mock, scheduler=limits)) as engine:
        streams, refusal = [], None
        while refusal is None:
            try:
                streams.append(engine.submit([request([1, 2], 1000, tenant="crowd")]))
            except QueueFull as error:
                refusal = error
        assert len(streams) <= 5  # one may decode already, and half of the queue waits
        assert 1 <= refusal.retry_after_s <= 60
        streams.append(engine.submit([request([1, 2], 1, tenant="other")]))
        for stream in streams:
            await stream.aclose()
