"""The queue by class: the most urgent first, none starves, and a crowd of one class takes no other's places."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.api.interface import PRIORITIES, GenerationRequest, Priority
from mlx_backend.core.sequence import SequenceGroup, build_groups
from mlx_backend.engine.class_queue import PATIENCE, ClassQueue, rank_of
from mlx_backend.engine.waiting import has_room

priorities = st.sampled_from(PRIORITIES)


def prompt(priority: Priority, tenant: str = "") -> SequenceGroup:
    asked = GenerationRequest(request_id="x", prompt_ids=(1, 2), max_tokens=1, tenant=tenant, priority=priority)
    return build_groups([asked])[0]


def filled(*classes: Priority, num_live: int = 0) -> ClassQueue:
    queue = ClassQueue()
    for each in (*classes, *(PRIORITIES[:1] * num_live)):
        queue.append(prompt(each))
    return queue


def admit(queue: ClassQueue, *, takes_batch: bool = True) -> Priority | None:
    group = queue.first(takes_batch=takes_batch)
    if group is None:
        return None
    queue.admit(group)
    return group.request.priority


def test_the_most_urgent_class_goes_first() -> None:
    queue = filled("batch", "normal", "live", "normal")
    assert [admit(queue) for _ in range(5)] == ["live", "normal", "normal", "batch", None]


def test_class_batch_waits_where_it_may_not_come() -> None:
    queue = filled("batch", "normal")
    assert [admit(queue, takes_batch=False) for _ in range(2)] == ["normal", None]
    assert (len(queue), queue.num_urgent) == (1, 0)


def test_a_class_that_waits_gets_a_place_after_so_many() -> None:
    queue = filled("normal", "batch", num_live=40)
    admitted = [admit(queue) for _ in range(PATIENCE + 2)]
    assert admitted == ["live"] * PATIENCE + ["batch", "normal"]


def test_who_aged_is_known_by_those_who_still_wait() -> None:
    queue = filled("normal", num_live=PATIENCE + 1)
    for _ in range(PATIENCE):
        admit(queue)
    group = queue.first()
    assert group is not None and group.request.priority == "normal"
    queue.admit(group)
    assert group.is_aged
    last = queue.first()
    assert last is not None
    queue.admit(last)
    assert not last.is_aged


def test_who_lost_a_place_goes_before_its_own_class_and_no_other() -> None:
    queue = filled("live", "batch")
    former = prompt("batch")
    queue.appendleft(former)
    assert admit(queue) == "live"
    assert queue.first() is former


def test_a_crowd_of_one_class_takes_no_place_of_a_more_urgent_one() -> None:
    queue = filled("batch", "batch", "batch", "batch")
    assert not has_room(queue.seen_by("batch"), [], [prompt("batch")], 4)
    assert has_room(queue.seen_by("normal"), [], [prompt("normal")], 4)
    queue = filled("normal", "normal", "normal", "normal")
    assert not has_room(queue.seen_by("batch"), [], [prompt("batch")], 4)
    assert has_room(queue.seen_by("live"), [], [prompt("live")], 4)


@given(st.lists(priorities | st.just("admit"), max_size=200))
def test_nothing_is_lost_and_the_most_urgent_comes_first_but_for_those_that_aged(events: list[str]) -> None:
    queue, model = ClassQueue(), {each: deque[SequenceGroup]() for each in PRIORITIES}
    since = dict.fromkeys(PRIORITIES, 0)
    for event in events:
        if event != "admit":
            group = prompt(event)  # type: ignore[arg-type]
            queue.append(group)
            model[group.request.priority].append(group)
        elif (first := queue.first()) is not None:
            queue.admit(first)
            rank = rank_of(first)
            assert model[first.request.priority].popleft() is first
            assert first.is_aged == any(model[each] for each in PRIORITIES[:rank])
            since[first.request.priority] = 0
            for each in PRIORITIES[rank + 1 :]:
                since[each] = since[each] + 1 if model[each] else 0
            assert max(since.values()) <= PATIENCE + len(PRIORITIES), "a class starves"
        assert len(queue) == sum(map(len, model.values()))
        assert list(queue) == [group for each in PRIORITIES for group in model[each]]
