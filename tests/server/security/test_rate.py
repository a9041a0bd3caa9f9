"""Buckets and accounts, by a clock that the test sets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.config import SecurityConfig
from server.security.keys import Key
from server.security.rate import Account, Accounts
from server.security.refusals import RateLimited
from tests.server.security.test_keys import Clock


def test_requests_are_counted_and_come_back() -> None:
    clock = Clock()
    account = Account(2, None, clock)
    account.admit()
    account.admit()
    with pytest.raises(RateLimited) as caught:
        account.admit()
    assert (caught.value.status, caught.value.type, caught.value.code) == (429, "requests", "rate_limit_exceeded")
    assert caught.value.headers == {"Retry-After": "30"}
    clock.now += 30
    account.admit()
    with pytest.raises(RateLimited):
        account.admit()


def test_tokens_may_go_below_zero_and_are_waited_out() -> None:
    clock = Clock()
    account = Account(None, 60, clock)
    account.admit()
    account.reserve(100)
    with pytest.raises(RateLimited) as caught:
        account.admit()
    assert caught.value.type == "tokens"
    assert caught.value.headers == {"Retry-After": "41"}
    clock.now += 41
    account.admit()


def test_a_refused_request_costs_nothing() -> None:
    clock = Clock()
    account = Account(60, 60, clock)
    account.reserve(120)
    for _ in range(100):
        with pytest.raises(RateLimited):
            account.admit()
    assert account.headers()["x-ratelimit-remaining-requests"] == "60"


def test_the_headers_are_openais() -> None:
    clock = Clock()
    account = Account(60, 100_000, clock)
    account.admit()
    rate_grant = account.reserve(50_000)
    assert account.headers() == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "100000",
        "x-ratelimit-remaining-tokens": "50000",
        "x-ratelimit-reset-tokens": "30s",
    }
    rate_grant.use(200_000)
    assert account.headers()["x-ratelimit-remaining-tokens"] == "0"
    assert account.headers()["x-ratelimit-reset-tokens"] == "2m0s"
    assert Account(None, None, clock).headers() == {}


def test_requests_in_parallel_take_their_tokens_when_they_are_let_in() -> None:
    clock = Clock()
    account = Account(None, 600, clock)
    first, second = account.reserve(400), account.reserve(200)
    with pytest.raises(RateLimited) as caught:
        account.reserve(100)
    assert caught.value.headers == {"Retry-After": "10"}
    assert "may need 100" in caught.value.message
    first.settle(50)
    third = account.reserve(350)
    with pytest.raises(RateLimited):
        account.reserve(1)
    for rate_grant in (first, first, second, third):
        rate_grant.settle(0)
    assert account.headers()["x-ratelimit-remaining-tokens"] == "550"


def test_one_that_may_take_more_than_a_minutes_worth_needs_it_whole_and_is_waited_out() -> None:
    clock = Clock()
    account = Account(None, 600, clock)
    small = account.reserve(1)
    with pytest.raises(RateLimited):
        account.reserve(3000)
    small.settle(0)
    large = account.reserve(3000)
    with pytest.raises(RateLimited) as caught:
        account.reserve(600)
    assert caught.value.headers == {"Retry-After": "300"}
    large.settle(700)
    clock.now += 70
    account.reserve(600)


def test_what_is_used_beyond_a_reservation_counts_at_once() -> None:
    clock = Clock()
    account = Account(None, 600, clock)
    rate_grant = account.reserve(100)
    rate_grant.use(90)
    assert account.headers()["x-ratelimit-remaining-tokens"] == "500"
    rate_grant.use(550)
    assert account.headers()["x-ratelimit-remaining-tokens"] == "50"
    rate_grant.settle(560)
    assert account.headers()["x-ratelimit-remaining-tokens"] == "40"


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900), st.floats(0, 20)), max_size=60))
def test_what_is_settled_is_what_was_used(requests: list[tuple[int, int, float]]) -> None:
    """Whatever was reserved: the tokens that were used are bounded by the limit, but for the last request's."""
    clock = Clock()
    account, used, largest = Account(None, 600, clock), 0, 0
    for reserved, taken, pause in requests:
        clock.now += pause
        try:
            rate_grant = account.reserve(reserved)
        except RateLimited:
            continue
        rate_grant.use(taken)
        rate_grant.settle(taken)
        used, largest = used + taken, max(largest, taken)
    assert used <= 600 + (clock.now - 100) * 10 + 2 * largest + 1e-6


@given(st.lists(st.floats(0, 10), max_size=200), st.integers(1, 100))
def test_never_more_than_a_bucket_and_what_time_brings(pauses: list[float], limit: int) -> None:
    clock = Clock()
    account, num_let_in = Account(limit, None, clock), 0
    for pause in pauses:
        clock.now += pause
        try:
            account.admit()
        except RateLimited:
            continue
        num_let_in += 1
    assert num_let_in <= limit + (clock.now - 100) * limit / 60 + 1e-6


def test_a_keys_own_limits_come_before_the_configurations() -> None:
    accounts = Accounts(SecurityConfig(requests_per_minute=5, tokens_per_minute=7), Clock())
    assert accounts.of(Key(name="a", hash="")).limits == (5, 7)
    assert accounts.of(Key(name="b", hash="", tokens_per_minute=9)).limits == (5, 9)
    assert accounts.of(None).limits == (5, 7)


def test_an_account_lives_on_until_its_limits_change() -> None:
    accounts = Accounts(SecurityConfig(), Clock())
    first = accounts.of(Key(name="a", hash="1", requests_per_minute=2))
    assert accounts.of(Key(name="a", hash="2", requests_per_minute=2)) is first
    assert accounts.of(Key(name="b", hash="1", requests_per_minute=2)) is not first
    assert accounts.of(Key(name="a", hash="1", requests_per_minute=3)) is not first


def test_a_key_that_was_idle_for_an_hour_has_a_minutes_worth() -> None:
    clock = Clock()
    account = Account(3, 100, clock)
    clock.now += 3600
    for _ in range(3):
        account.admit()
    with pytest.raises(RateLimited):
        account.admit()
    clock.now += 3600
    account.reserve(100)
    with pytest.raises(RateLimited):
        account.reserve(2)
