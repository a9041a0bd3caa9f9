"""The store keeps within its bounds whatever comes, and a key sees what is its own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.dialects.openai_responses.store import Bounds, NotStored, ResponseStore, Stored

PUTS = st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.integers(0, 60))


def build(count: int = 10, size: int = 100) -> ResponseStore:
    return ResponseStore(lambda: Bounds(count, size))


def stored(size: int, previous_id: str | None = None) -> Stored:
    return Stored(b"r" * size, b"", previous_id)


@settings(max_examples=80, deadline=None)
@given(st.lists(PUTS, max_size=25), st.integers(1, 6))
def test_it_keeps_within_its_bounds(puts: list[tuple[str, int, int]], count: int) -> None:
    store = build(count)
    kept: dict[tuple[str, str], int] = {}
    for owner, number, size in puts:
        id = f"{owner}{number}-{len(kept)}"
        store.put(owner, id, stored(size))
        kept[owner, id] = size
        there = {pair: size for pair, size in kept.items() if is_there(store, *pair)}
        assert len(store) == len(there) <= count
        assert store.num_bytes == sum(there.values()) <= 100


def is_there(store: ResponseStore, owner: str, id: str) -> bool:
    return id in store._by_owner.get(owner, {})


def test_another_key_sees_and_deletes_nothing() -> None:
    store = build()
    store.put("a", "1", stored(5))
    for ask in (store.get, store.chain, store.delete):
        with pytest.raises(NotStored):
            ask("b", "1")
    assert store.get("a", "1").response == b"rrrrr"


def test_one_key_cannot_drive_out_what_is_anothers() -> None:
    store = build(size=100)
    store.put("a", "1", stored(20))
    for number in range(20):
        store.put("b", str(number), stored(30))
    assert store.get("a", "1")
    assert not is_there(store, "b", "0") and is_there(store, "b", "19")


def test_what_was_used_stays_with_all_that_led_to_it() -> None:
    store = build(count=4)
    for id, previous in (("1", None), ("2", "1"), ("x", None), ("y", None)):
        store.put("a", id, stored(1, previous))
    assert len(store.chain("a", "2")) == 2
    store.put("a", "z", stored(1))
    assert not is_there(store, "a", "x")
    store.put("a", "w", stored(1))
    store.put("a", "v", stored(1))
    # a response goes before those that need no less than it
    assert [is_there(store, "a", id) for id in ("1", "2")] == [True, False]


def test_the_chain_begins_with_the_first_and_breaks_where_one_is_gone() -> None:
    store = build()
    for id, previous in (("1", None), ("2", "1"), ("3", "2")):
        store.put("a", id, stored(int(id), previous))
    assert [each.num_bytes for each in store.chain("a", "3")] == [1, 2, 3]
    store.delete("a", "2")
    with pytest.raises(NotStored) as error:
        store.chain("a", "3")
    assert error.value.id == "2"


def test_what_is_too_large_drives_out_nothing() -> None:
    store = build(size=100)
    store.put("a", "1", stored(90))
    store.put("a", "2", stored(101))
    assert is_there(store, "a", "1") and not is_there(store, "a", "2")


@pytest.mark.parametrize(("count", "size", "is_open"), [(0, 1, False), (1, 0, False), (1, 1, True)])
def test_it_may_be_closed(count: int, size: int, is_open: bool) -> None:
    assert build(count, size).is_open is is_open
