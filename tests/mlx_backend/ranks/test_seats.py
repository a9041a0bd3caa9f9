"""Which rank a process becomes: each rank once, by its host or by its number, and never with another version."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.ranks.seats import Refused, Seat, Seats, plain, version_difference

VERSIONS = {"pippin": "1", "mlx": "0.32.4", "mlx-lm": "0.32.2"}
IPS = ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
HELLO = {"say": "hello", "versions": VERSIONS}
PLACES = st.lists(st.frozensets(st.sampled_from(IPS), min_size=1), min_size=1, max_size=5)
ASKING = st.lists(st.tuples(st.none() | st.integers(-1, 7), st.sampled_from([*IPS, "10.0.0.9"])), max_size=12)


def seats(*places: frozenset[str]) -> Seats:
    return Seats([Seat(rank, f"studio-{rank}", ips) for rank, ips in enumerate(places, 1)], VERSIONS)


@given(PLACES, ASKING)
def test_every_rank_is_given_once_and_only_to_its_host_or_by_its_number(
    places: list[frozenset[str]], asking: list[tuple[int | None, str]]
) -> None:
    group = seats(*places)
    given_: list[int] = []
    for rank, ip in asking:
        with contextlib.suppress(Refused):
            given_.append(group.take({**HELLO, "rank": rank}, ip))
            assert given_[-1] == rank if rank is not None else ip in places[given_[-1] - 1]
    assert len(set(given_)) == len(given_)
    assert set(given_) == group.taken == set(range(1, len(places) + 1)) - {seat.rank for seat in group.free}


@given(PLACES)
def test_hosts_that_come_in_any_order_fill_all_seats(places: list[frozenset[str]]) -> None:
    group = seats(*(frozenset({f"10.0.1.{rank}"}) for rank in range(len(places))))
    for rank in reversed(range(len(places))):
        assert group.take(HELLO, f"::ffff:10.0.1.{rank}") == rank + 1
    assert group.free == ()


@pytest.mark.parametrize(
    ("hello", "ip", "says"),
    [
        (HELLO, "10.0.0.9", "10.0.0.9 is no address of a rank in the hostfile; correct the file, or join with --rank"),
        ({**HELLO, "rank": 0}, "10.0.0.2", "there is no rank 0 to join; the group's are 1 to 2"),
        ({**HELLO, "rank": 3}, "10.0.0.2", "there is no rank 3"),
        ({**HELLO, "rank": True}, "10.0.0.2", "there is no rank True"),
        ({**HELLO, "rank": [1] * 99}, "10.0.0.2", "there is no rank"),
        ({**HELLO, "versions": {**VERSIONS, "mlx": "0.33"}}, "10.0.0.2", "has mlx 0.33, and rank 0 has mlx 0.32.4"),
        ({"rank": 1}, "10.0.0.2", "does not say its versions"),
        ({"versions": {}}, "10.0.0.2", "has pippin none, mlx none, mlx-lm none, and rank 0"),
    ],
)
def test_others_are_refused_in_one_line(hello: dict[str, Any], ip: str, says: str) -> None:
    group = seats(frozenset({"10.0.0.2"}), frozenset({"10.0.0.3"}))
    with pytest.raises(Refused, match=says) as caught:
        group.take(hello, ip)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert len(group.free) == 2


@pytest.mark.parametrize("rank", [None, 1])
def test_a_host_that_joins_twice_is_refused(rank: int | None) -> None:
    group = seats(frozenset({"10.0.0.2"}))
    assert group.take({**HELLO, "rank": rank}, "10.0.0.2") == 1
    with pytest.raises(Refused, match=r"rank 1 \(studio-1\) has joined already; end the other process"):
        group.take({**HELLO, "rank": rank}, "10.0.0.2")


def test_versions_that_nothing_asks_for_do_not_matter() -> None:
    assert version_difference(VERSIONS, {**VERSIONS, "python": "3.13"}) is None


@given(st.text(max_size=40))
def test_any_text_is_an_address_of_some_sort(text: str) -> None:
    assert plain(plain(text)) == plain(text)
    assert plain("::ffff:10.0.0.1") == "10.0.0.1" and plain("FE80::1%en0") == "fe80::1"
