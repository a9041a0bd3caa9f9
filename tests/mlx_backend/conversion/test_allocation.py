"""Allocation: never over the budget, never worse with more bytes, as good as trying all there is."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as some

from mlx_backend.conversion.allocation import BudgetTooSmall, Option, allocate, hull, least_bytes
from mlx_backend.conversion.notes import few_bits, kept_by_plain
from mlx_backend.conversion.options import (
    MEASURED_SPECS,
    SPECS,
    allowed,
    bytes_of,
    interpolated,
    probes_of,
    unmeasured,
)
from mlx_backend.conversion.recipes import Candidate
from mlx_backend.conversion.spec import Spec

option = some.builds(Option, some.none(), some.integers(1, 60), some.floats(0, 100))
choices = some.dictionaries(some.sampled_from("abcde"), some.lists(option, min_size=1, max_size=5), min_size=1)


def taken(chosen: dict[str, Option]) -> int:
    return sum(each.num_bytes for each in chosen.values())


def loss(chosen: dict[str, Option]) -> float:
    return sum(each.loss for each in chosen.values())


@given(choices, some.integers(0, 400))
def test_it_fits_or_says_what_the_least_is(options: dict[str, list[Option]], budget: int) -> None:
    least = least_bytes(options)
    if budget < least:
        with pytest.raises(BudgetTooSmall) as error:
            allocate(options, budget)
        assert error.value.least_bytes == least
        return
    chosen = allocate(options, budget)
    assert chosen.keys() == options.keys()
    assert all(chosen[path] in options[path] for path in options)
    assert taken(chosen) <= budget


@given(choices, some.integers(0, 200), some.integers(0, 200))
def test_more_bytes_never_lose_more(options: dict[str, list[Option]], more: int, most: int) -> None:
    least = least_bytes(options)
    small, large = allocate(options, least + min(more, most)), allocate(options, least + max(more, most))
    assert loss(large) <= loss(small) + 1e-9
    assert taken(large) >= taken(small)


@given(
    some.dictionaries(some.sampled_from("abc"), some.lists(option, min_size=1, max_size=4), min_size=1),
    some.integers(0, 99),
)
def test_nothing_of_the_same_bytes_loses_less(options: dict[str, list[Option]], more: int) -> None:
    chosen = allocate(options, least_bytes(options) + more)
    every = (
        loss(dict(zip(options, each, strict=True)))
        for each in product(*options.values())
        if _bytes(each) <= taken(chosen)
    )
    assert loss(chosen) <= min(every) + 1e-9


def _bytes(options: tuple[Option, ...]) -> int:
    return sum(each.num_bytes for each in options)


@given(some.lists(option, min_size=1, max_size=9))
def test_a_hull_turns_one_way(options: list[Option]) -> None:
    chain = hull(options)
    gains = [(a.loss - b.loss) / (b.num_bytes - a.num_bytes) for a, b in pairwise(chain)]
    assert all(gain > 0 for gain in gains)
    assert gains == sorted(gains, reverse=True)
    assert chain[0].num_bytes == min(each.num_bytes for each in options)
    assert chain[-1].loss == min(each.loss for each in options)


def test_floors_hold_among_the_options() -> None:
    assert allowed(Candidate("model.layers.0.mlp.switch_mlp.up_proj", 256), is_measured=False) == (*SPECS, None)
    attention = allowed(Candidate("model.layers.0.self_attn.q_proj", 256), is_measured=False)
    assert attention == (*SPECS, None)
    assert allowed(Candidate("model.layers.0.mlp.gate", 256, Spec(8)), is_measured=True) == (Spec(8), None)
    assert allowed(Candidate("lm_head", 256, own=False), is_measured=True) == (None,)
    kept = allowed(Candidate("model.layers.0.mlp.up_proj", 256), is_measured=True, most=Spec(4, 32))
    assert kept == (*MEASURED_SPECS[:8], Spec(4, 32)) and MEASURED_SPECS[8] == Spec(4, 32)


def test_formats_say_their_bytes() -> None:
    assert bytes_of((8, 16, 128), "BF16", 2, Spec(4)) == 8 * 16 * (64 + 2 * 4)
    assert bytes_of((8, 16, 128), "F32", 4, Spec(4)) == 8 * 16 * (64 + 2 * 8)
    assert bytes_of((8, 16, 128), "BF16", 2, Spec(4, 16, "nvfp4")) == 8 * 16 * (64 + 8)
    assert bytes_of((8, 16, 128), "BF16", 2, None) == 8 * 16 * 256


def test_few_bits_come_where_nothing_else_fits_and_are_told() -> None:
    paths = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.switch_mlp.up_proj")
    options = {
        path: [Option(spec, 1000 * spec.bits, unmeasured(path, spec, 4.0**-spec.bits)) for spec in map(Spec, (2, 3, 4))]
        for path in paths
    }
    enough = {path: option.spec for path, option in allocate(options, 6000).items()}
    assert enough == {paths[0]: Spec(4), paths[1]: Spec(2)} and not list(few_bits(enough))
    scarce = {path: option.spec for path, option in allocate(options, 5000).items()}
    assert scarce == {paths[0]: Spec(3), paths[1]: Spec(2)}
    assert next(few_bits(scarce)).startswith("1 weight has fewer bits than is usual for their kind, since the size")


def test_what_plain_bits_leave_is_told_with_the_reason() -> None:
    candidates = [Candidate("a", 32), Candidate("b", 64), Candidate("c", 96, own=False), Candidate("d", 32)]
    told = list(kept_by_plain(candidates, Spec(4)))
    assert told[0].startswith("2 weights stay as they are") and "groups of 64 do not divide rows of 32;" in told[0]
    assert told[1].startswith("1 weight stays unquantized") and "(c)" in told[1] and len(told) == 2
    assert list(kept_by_plain(candidates[1:2], Spec(4))) == []


@given(some.lists(some.floats(1e-9, 1.0), min_size=3, max_size=3), some.floats(1e-9, 1.0), some.floats(1e-9, 1.0))
def test_losses_between_what_was_measured_follow_the_errors(errors: list[float], high: float, low: float) -> None:
    worst, middle, best = sorted(errors, reverse=True)
    specs = (Spec(2), Spec(3), Spec(4))
    by_spec = dict(zip(specs, (worst, middle, best), strict=True))
    assert probes_of(specs) == (Spec(2), Spec(4))
    found = interpolated(by_spec, {Spec(2): max(high, low), Spec(4): min(high, low)})
    assert found[Spec(2)] == max(high, low) and found[Spec(4)] == min(high, low)
    assert 0 <= found[Spec(3)] <= found[Spec(2)] * 1.000001
