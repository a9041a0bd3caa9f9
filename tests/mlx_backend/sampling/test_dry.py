"""DRY against the method as its author wrote it: loops over one row's tokens."""

from __future__ import annotations

from collections.abc import Sequence as Tokens

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_backend.api.interface import SamplingParams
from mlx_backend.core.row import Row
from mlx_backend.sampling.dry import LONGEST, Dry
from tests.sampling_rows import VOCAB, draw, row, sampler

pytestmark = pytest.mark.mlx


def penalties_by_hand(tokens: Tokens[int], params: SamplingParams) -> list[float]:
    """What is taken from each token's logit."""
    tokens, breakers = tokens[-params.dry_range :], params.dry_breaker_ids
    longest: dict[int, int] = {}
    last = tokens[-1]
    for i in range(len(tokens) - 1) if last not in breakers else ():
        if tokens[i] != last or tokens[i + 1] in breakers:
            continue
        length = 1
        while length < LONGEST and i - length >= 0:
            earlier = tokens[-(length + 1)]
            if tokens[i - length] != earlier or earlier in breakers:
                break
            length += 1
        longest[tokens[i + 1]] = max(longest.get(tokens[i + 1], 0), length)
    penalties = [0.0] * VOCAB
    for token, length in longest.items():
        if length >= params.dry_allowed_length:
            penalties[token] = params.dry_multiplier * params.dry_base ** (length - params.dry_allowed_length)
    return penalties


def penalties(dry: Dry, num_rows: int) -> list[list[float]]:
    taken: list[list[float]] = (-dry.apply(mx.zeros((num_rows, VOCAB)))).tolist()
    return taken


few_tokens = st.lists(st.integers(0, 3), min_size=1, max_size=40)
dry_params = st.builds(
    SamplingParams,
    dry_multiplier=st.sampled_from([0.5, 0.8]),
    dry_base=st.sampled_from([1.0, 1.2, 1.75]),
    dry_allowed_length=st.integers(1, 4),
    dry_range=st.sampled_from([2, 3, 8, 25, 100]),
    dry_breaker_ids=st.sampled_from([(), (3,), (2, 3), (3, 7, 8)]),
)


@given(
    rows=st.lists(st.tuples(dry_params, few_tokens, few_tokens), min_size=1, max_size=3),
    steps=st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), max_size=12),
)
@settings(max_examples=80, deadline=None)
def test_penalties_are_the_methods_own_step_after_step(
    rows: list[tuple[SamplingParams, list[int], list[int]]], steps: list[list[int]]
) -> None:
    made = [row(params, tuple(prompt), tuple(output)) for params, prompt, output in rows]
    histories = [prompt + output for _, prompt, output in rows]
    dry = Dry(made, None)
    for tokens in [*steps, None]:
        expected = [penalties_by_hand(h, params) for h, (params, _, _) in zip(histories, rows, strict=True)]
        for found, by_hand in zip(penalties(dry, len(rows)), expected, strict=True):
            assert found == pytest.approx(by_hand, rel=1e-5)
        if tokens is not None:
            dry.append(mx.array(tokens[: len(rows)], dtype=mx.uint32))
            for history, token in zip(histories, tokens, strict=False):
                history.append(token)


@pytest.mark.parametrize("num_tokens", [LONGEST - 1, LONGEST, LONGEST + 1, 3 * LONGEST])
def test_a_sequence_counts_as_the_longest_at_most(num_tokens: int) -> None:
    params = SamplingParams(dry_multiplier=0.5, dry_base=1.1, dry_range=1024)
    found = penalties(Dry([row(params, prompt=(7,) * num_tokens)], None), 1)
    assert found[0] == pytest.approx(penalties_by_hand((7,) * num_tokens, params), rel=1e-4)
    assert found[0][7] == pytest.approx(0.5 * 1.1 ** (min(num_tokens - 1, LONGEST) - 2), rel=1e-4)


def test_no_penalty_is_infinite() -> None:
    params = SamplingParams(dry_multiplier=100, dry_base=8, dry_allowed_length=1)
    assert penalties(Dry([row(params, prompt=(7,) * 200)], None), 1)[0][7] == 1e9


def test_state_goes_on_over_a_change_of_rows() -> None:
    """Also of tokens that the host has not read, of rows with other ranges, and of rows without DRY between them."""
    wide = SamplingParams(temperature=0, dry_multiplier=1.0, dry_range=50)
    narrow = SamplingParams(temperature=0, dry_multiplier=1.0, dry_range=4)
    plain, staying, leaving = row(SamplingParams(temperature=0)), row(narrow, (1, 2, 3)), row(wide, (1, 2, 3))
    dry = Dry([leaving, plain, staying], None)
    dry.append(mx.array([1, 9, 1]))
    dry.append(mx.array([2, 9, 2]))
    dry = Dry([staying, row(wide, (5, 6, 7, 5, 6))], dry)
    dry.append(mx.array([1, 7]))
    dry.append(mx.array([2, 5]))
    assert penalties(dry, 2) == [penalties_by_hand((1, 2, 1, 2), narrow), penalties_by_hand((5, 6, 7) * 2 + (5,), wide)]
    dry = Dry([row(wide, (5, 6, 7, 5, 6)), plain, staying], dry)
    assert penalties(dry, 3)[1:] == [[0.0] * VOCAB, penalties_by_hand((1, 2, 1, 2), narrow)]


def test_a_loop_is_left() -> None:
    """A model that would say 1 2 3 for ever: greedy rows with DRY leave the loop, those without stay in it."""

    def model(last: int) -> list[float]:
        return [3.0 if token == last % 3 + 1 else 2.0 if token == 8 else 0.0 for token in range(VOCAB)]

    def run(*rows: Row) -> list[list[int]]:
        made, last = sampler(*rows), [3] * len(rows)
        outputs: list[list[int]] = [[] for _ in rows]
        for _ in range(9):
            last = made.draw(mx.array([model(token) for token in last])).tokens.tolist()
            for one, output, token in zip(rows, outputs, last, strict=True):
                one.num_started_tokens += 1
                output.append(token)
        return outputs

    dry = SamplingParams(temperature=0, dry_multiplier=0.8)
    looping, leaving, breaking = run(
        row(SamplingParams(temperature=0), (3,)),
        row(dry, (3,)),
        row(SamplingParams(temperature=0, dry_multiplier=0.8, dry_breaker_ids=(1,)), (3,)),
    )
    assert looping == [1, 2, 3] * 3
    assert leaving[:6] == [1, 2, 3, 1, 2, 8]  # 3 would extend 3 1 2, by 0.8 * 1.75
    assert breaking == [1, 2, 3] * 3  # no sequence goes across the 1, and 2 3 leads to it


def test_what_is_forbidden_stays_so() -> None:
    params = SamplingParams(temperature=0, dry_multiplier=5.0, dry_allowed_length=1, allowed_token_ids=(4, 5))
    assert draw([[9.0] * 4 + [3.0, 0.0] + [9.0] * 6], row(params, (1, 4, 1))) == [5]
