"""What messages cost, against published speeds of whole models on several machines. No MLX."""

from __future__ import annotations

from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.planning.links import LINKS, Span, default_link, exchange_s, find_link, sent_bytes, slowed
from mlx_backend.planning.machines import find_machine, load_machines
from mlx_backend.planning.ranks import Message
from mlx_backend.planning.speed import Estimate

MESSAGES = st.lists(
    st.builds(Message, st.sampled_from(["all_sum", "all_gather", "send"]), st.integers(1, 10**6)), max_size=200
)
LINK = st.sampled_from(LINKS)


@given(MESSAGES, st.integers(2, 16), LINK, st.integers(1, 4096))
def test_spans_are_in_order_and_more_tokens_take_no_less(
    messages: list[Message], size: int, link: object, num_tokens: int
) -> None:
    one, more = exchange_s(messages, size, link), exchange_s(messages, size, link, num_tokens)  # type: ignore[arg-type]
    for span in (one, more):
        assert 0 <= span.low <= span.value <= span.high
    assert more.value >= one.value
    assert more.value <= num_tokens * one.value + 1e-12  # together is never dearer than one after the other


@given(MESSAGES, st.integers(2, 15), LINK)
def test_more_ranks_never_take_less(messages: list[Message], size: int, link: object) -> None:
    few, more = (exchange_s(messages, each, link) for each in (size, size + 1))  # type: ignore[arg-type]
    assert few.value <= more.value + 1e-15


@given(st.floats(0.1, 1000), st.floats(0.1, 1), st.floats(1, 10), st.floats(0, 1), st.floats(0, 1))
def test_messages_slow_a_speed_and_widen_its_range(
    value: float, low: float, high: float, added: float, more: float
) -> None:
    estimate = Estimate(value, low * value, high * value)
    found = slowed(estimate, Span(added, added / 2, added + more))
    assert found is not None
    assert found.low <= found.value <= found.high
    for slower, alone in zip(astuple(found), astuple(estimate), strict=True):
        assert slower <= alone * (1 + 1e-9)


def test_a_speed_that_cannot_be_told_stays_so() -> None:
    assert slowed(None, Span(1, 1, 1)) is None


def test_bytes_that_a_rank_sends() -> None:
    assert sent_bytes(Message("all_sum", 100), 2) == 100
    assert sent_bytes(Message("all_sum", 100), 4) == 150
    assert sent_bytes(Message("all_gather", 100), 4) == 300
    assert sent_bytes(Message("send", 100), 4) == 100


def test_a_ring_has_more_hops_with_more_ranks_and_a_mesh_has_not() -> None:
    messages = [Message("all_sum", 4)] * 10
    mesh, ring = find_link("tb5"), find_link("tb4")
    assert exchange_s(messages, 4, mesh).value == pytest.approx(exchange_s(messages, 2, mesh).value, rel=1e-3)
    assert exchange_s(messages, 4, ring).value == pytest.approx(3 * exchange_s(messages, 2, ring).value, rel=1e-3)


@pytest.mark.parametrize(
    ("machine", "link"),
    [
        ("m3-ultra-512", "tb5"),
        ("m4-max-128", "tb5"),
        ("m2-ultra-192", "tb4"),
        ("m1-16", "tb4"),
    ],
)
def test_machines_are_linked_as_they_can(machine: str, link: str) -> None:
    assert default_link(find_machine(machine)).id == link


def test_every_machine_has_a_link() -> None:
    assert {default_link(machine).id for machine in load_machines()} == {"tb4", "tb5"}


def test_a_link_that_is_none() -> None:
    with pytest.raises(ValueError, match="link 'wifi' must be one of tb5, tb4, 10gbe, 1gbe"):
        find_link("wifi")
    assert find_link(" TB5 ").id == "tb5"
