from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.engine.expected_length import PRIOR, ExpectedLength

CHAT = 131_000
lengths = st.lists(st.integers(1, 5000), max_size=400)


def learned(found: list[int], max_tokens: int = CHAT) -> ExpectedLength:
    target = ExpectedLength()
    for length in found:
        target.observe(max_tokens, length)
    return target


@given(lengths, st.integers(1, CHAT), st.integers(0, 10_000))
def test_it_is_longer_than_what_is_written_and_within_max_tokens(found: list[int], most: int, written: int) -> None:
    expected = learned(found).expect(most, written)
    assert min(most, written + 1) <= expected <= most


@given(lengths, st.lists(st.integers(0, 10_000), min_size=2, max_size=5))
def test_who_has_written_more_is_expected_to_become_no_shorter(found: list[int], written: list[int]) -> None:
    target = learned(found)
    expected = [target.expect(CHAT, each) for each in sorted(written)]
    assert expected == sorted(expected)


def test_before_anything_finished_it_is_that_of_an_ordinary_chat() -> None:
    assert 256 <= ExpectedLength().expect(CHAT) <= 1024
    assert ExpectedLength().expect(100) == 100


def test_three_of_four_become_no_longer() -> None:
    target = learned([100] * 300 + [400] * 100)
    assert target.expect(CHAT) == 400  # of the last 256, 100 were longer than 100
    target = learned([400] * 100 + [100] * 200)
    assert target.expect(CHAT) == 100
    assert target.expect(CHAT, 100) == 400


def test_it_forgets_what_is_long_ago() -> None:
    target = learned([4000] * 256)
    assert target.expect(CHAT) == 4000
    for _ in range(256):
        target.observe(CHAT, 10)
    assert target.expect(CHAT) == 10
    assert target.expect(CHAT, 10) == 15  # nothing longer is known


def test_a_sequence_that_is_longer_than_all_grows_on() -> None:
    assert learned([]).expect(CHAT, max(PRIOR)) == 1.5 * max(PRIOR)
    assert learned([5001]).expect(CHAT, 5000) == 7500  # one that was longer says little


def test_answers_of_one_word_say_nothing_of_chats_without_a_limit() -> None:
    target = learned([1] * 300, max_tokens=4)
    assert target.expect(4) == 1
    assert target.expect(CHAT) == ExpectedLength().expect(CHAT)


def test_a_request_for_no_token_is_no_measure() -> None:
    target = learned([0] * 300, max_tokens=0)
    assert target.expect(0) == 0
    assert target.expect(1) == 1
