"""N-grams: what followed the newest tokens before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.drafting.drafter import NUM_CLASSES, Guess, build_drafter
from mlx_backend.drafting.ngram import NGramDrafter

TOKENS = st.lists(st.integers(0, 6), max_size=60)


def test_what_followed_before_follows_again() -> None:
    drafter = NGramDrafter([1, 2, 3, 4, 5, 6, 7, 8, 9])
    drafter.extend([2, 3, 4])
    assert drafter.guess(4) == Guess((5, 6, 7, 8), 0)


def test_a_guess_that_came_true_is_followed_and_trusted_more() -> None:
    drafter = NGramDrafter(list(range(40)))
    drafter.extend([2, 3, 4])
    first = drafter.guess(2)
    drafter.extend(range(5, 15))
    assert drafter.guess(2).token_ids == (15, 16)
    assert drafter.guess(2).confidence > first.confidence


def test_the_longest_match_counts_and_then_the_newest() -> None:
    long, short = [1, 2, 3, 4, 5, 6, 50], [9, 4, 5, 6, 60]
    drafter = NGramDrafter([*long, *short])
    drafter.extend([2, 3, 4, 5, 6])
    assert drafter.guess(1).token_ids == (50,)
    drafter = NGramDrafter([*long, *short])
    drafter.extend([8, 4, 5, 6])
    assert drafter.guess(1).token_ids == (60,)


def test_two_tokens_are_no_match() -> None:
    drafter = NGramDrafter([1, 2, 3, 4])
    drafter.extend([9, 1, 2])
    assert drafter.guess(4) == Guess()


def test_what_repeats_itself_goes_on() -> None:
    drafter = NGramDrafter([7])
    drafter.extend([1, 2, 3] * 2)
    assert drafter.guess(7).token_ids == (1, 2, 3, 1, 2, 3, 1)


def test_a_prediction_is_followed_from_its_beginning_and_found_again_behind_an_error() -> None:
    prediction = list(range(100, 130))
    drafter = NGramDrafter([1, 2, 3], prediction)
    assert drafter.guess(3) == Guess((100, 101, 102), 2, is_predicted=True)
    drafter.extend([100, 101, 55, 103])
    assert drafter.guess(3) == Guess()
    drafter.extend([104, 105])
    found = drafter.guess(3)
    assert found.token_ids == (106, 107, 108)
    assert found.is_predicted


def test_nothing_is_predicted_beyond_the_prediction() -> None:
    drafter = NGramDrafter([1, 2, 3], [5, 6])
    drafter.extend([5])
    assert drafter.guess(4).token_ids == (6,)
    drafter.extend([6])
    assert drafter.guess(4).token_ids == ()


@given(TOKENS, TOKENS, TOKENS, st.integers(0, 12))
def test_a_guess_is_of_what_was_there(prompt: list[int], prediction: list[int], output: list[int], most: int) -> None:
    drafter = build_drafter("ngram", prompt, prediction)
    for token in output:
        guess = drafter.guess(most)
        assert len(guess.token_ids) <= most
        assert 0 <= guess.confidence < NUM_CLASSES
        if guess.token_ids:
            known = prediction if guess.is_predicted else [*prompt, *output]
            assert set(guess.token_ids) <= set(known)
        assert drafter.guess(most) == guess
        drafter.extend([token])


@given(TOKENS, TOKENS)
def test_tokens_may_come_together(prompt: list[int], output: list[int]) -> None:
    """How many tokens come at once changes what is guessed only where a search is spared."""
    apart, together = NGramDrafter(prompt), NGramDrafter(prompt)
    for token in output:
        apart.extend([token])
    together.extend(output)
    assert apart.guess(3).token_ids == together.guess(3).token_ids or len(output) > 16
