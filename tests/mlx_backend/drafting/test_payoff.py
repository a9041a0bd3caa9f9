"""Drafts that pay are made, and no row loses much by them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_backend.drafting.payoff import Account, Candidate, Payoff
from mlx_backend.kv_cache.allocation import most_step_tokens

PLAIN_S = 0.010


def measured(max_drafts: int = 8, max_slowdown: float = 0.01, rows: int = 1) -> Payoff:
    payoff = Payoff(max_drafts, max_slowdown)
    payoff.observe_plain(rows, PLAIN_S)
    return payoff


def run(payoff: Payoff, *, share: float, token_s: float, num_steps: int, rows: int = 1, drafting: int = 1) -> float:
    """Decode, where a step takes `token_s` more for each draft, and drafts come true by chance; the seconds lost."""
    source, accounts, lost = random.Random(0), [Account() for _ in range(rows)], 0.0
    for _ in range(num_steps):
        candidates = [Candidate(each, 8 if place < drafting else 0, 2) for place, each in enumerate(accounts)]
        chosen = payoff.choose(candidates)
        if not any(chosen):
            payoff.observe_plain(rows, PLAIN_S)
            for each in accounts:
                each.decoded_s += PLAIN_S
            continue
        took = PLAIN_S + token_s * sum(chosen)
        payoff.observe_drafted(rows, rows + sum(chosen), took)
        for each, num in zip(accounts, chosen, strict=True):
            accepted = next((n for n in range(num) if source.random() >= share), num)
            if num:
                payoff.observe_draft(each, 2, accepted, num)
            each.decoded_s += took
            lost -= payoff.settle(each, rows, 1 + accepted, took)
    return lost


def test_nothing_is_drafted_before_a_plain_step_was_measured() -> None:
    assert Payoff(8, 0.1).choose([Candidate(Account(), 8, 3)]) == [0]


def test_all_that_is_likely_is_drafted_where_it_costs_nothing() -> None:
    payoff, account = measured(), Account()
    for _ in range(20):
        payoff.observe_draft(account, 3, 8, 8)
        payoff.observe_drafted(1, 9, PLAIN_S * 1.05)
    assert payoff.choose([Candidate(account, 8, 3)]) == [8]
    assert payoff.choose([Candidate(account, 3, 3)]) == [3]


def test_a_dear_step_gets_few_drafts_or_none() -> None:
    payoff, account = measured(), Account(balance_s=1.0)
    for _ in range(20):
        payoff.observe_draft(account, 3, 1, 2)
    for tokens in (2, 3, 5, 9):
        payoff.observe_drafted(1, tokens, PLAIN_S * tokens)
    assert payoff.choose([Candidate(account, 8, 3)]) == [0]


@pytest.mark.parametrize("rows", [1, 4])
def test_drafts_that_are_never_right_cost_little(rows: int) -> None:
    lost = run(measured(rows=rows), share=0.0, token_s=0.004, num_steps=1000, rows=rows, drafting=rows)
    assert lost <= rows * (0.01 * 1000 * PLAIN_S + 2 * PLAIN_S)


def test_drafts_that_are_right_win() -> None:
    assert run(measured(), share=0.9, token_s=0.001, num_steps=300) < -1.0


def test_a_row_without_drafts_is_not_slowed_by_others() -> None:
    payoff = measured(rows=4)
    accounts = [Account() for _ in range(4)]
    source = random.Random(1)
    for _ in range(1000):
        chosen = payoff.choose([Candidate(each, 8 if place else 0, 3) for place, each in enumerate(accounts)])
        took = PLAIN_S + 0.002 * sum(chosen)
        for each, num in zip(accounts, chosen, strict=True):
            accepted = next((n for n in range(num) if source.random() >= 0.9), num)
            if num:
                payoff.observe_draft(each, 3, accepted, num)
            each.decoded_s += took
            if any(chosen):
                payoff.settle(each, 4, 1 + accepted, took)
        if any(chosen):
            payoff.observe_drafted(4, 4 + sum(chosen), took)
        else:
            payoff.observe_plain(4, took)
    assert accounts[0].balance_s >= -(0.01 * accounts[0].decoded_s + 2 * PLAIN_S)
    assert sum(each.balance_s for each in accounts[1:]) > 0


def test_what_was_learned_fades() -> None:
    payoff = measured()
    for _ in range(200):
        payoff.observe_draft(Account(), 3, 0, 8)
    low = payoff.share(Account(), 3)
    for _ in range(5000):
        payoff.observe_plain(1, PLAIN_S)
    assert low < 0.1
    assert payoff.share(Account(), 3) > 0.6


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(0, 3), st.floats(-1, 1)), min_size=1, max_size=40),
    st.lists(st.tuples(st.integers(1, 80), st.floats(0.001, 1.0)), max_size=8),
    st.integers(1, 15),
)
def test_a_choice_is_within_all_bounds(
    rows: list[tuple[int, int, float]], sizes: list[tuple[int, float]], max_drafts: int
) -> None:
    payoff = Payoff(max_drafts, 0.01)
    payoff.observe_plain(len(rows), PLAIN_S)
    for more, seconds in sizes:
        payoff.observe_drafted(len(rows), len(rows) + more, seconds)
    candidates = [Candidate(Account(balance_s=balance), num, confidence) for num, confidence, balance in rows]
    chosen = payoff.choose(candidates)
    assert all(0 <= num <= row.num_tokens for num, row in zip(chosen, candidates, strict=True))
    assert len(rows) * (1 + max(chosen)) <= most_step_tokens(len(rows), max_drafts)
    if any(chosen):
        step_s = payoff.drafted_s(len(rows), len(rows) + sum(chosen))
        assert all(row.account.allowance_s(PLAIN_S, 0.01) >= step_s - PLAIN_S for row in candidates)
