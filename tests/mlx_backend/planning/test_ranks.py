"""What can be split over ranks, and what a refusal says. No MLX."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.planning.ranks import MOST_RANKS, Divisible, Splits, check, even_split, parse_split, possibilities

SIZES = st.integers(2, MOST_RANKS)


def splits(
    *counts: int, num_layers: int = 61, has_pipeline: bool = True, has_uneven: bool = True, has_tensor: bool = True
) -> Splits:
    divisibles = tuple(Divisible(f"things of kind {count}", count) for count in counts)
    return Splits("deepseek_v3", num_layers, divisibles if has_tensor else None, has_pipeline, has_uneven)


@given(st.integers(1, 200), SIZES)
def test_even_splits_hold_every_layer_and_differ_by_one_at_most(num_layers: int, size: int) -> None:
    split = even_split(num_layers, size)
    assert sum(split) == num_layers and len(split) == size
    assert max(split) - min(split) <= 1
    assert list(split) == sorted(split, reverse=True)  # as mlx-lm: low ranks get the layers left over


@given(st.lists(st.integers(1, 10_000), max_size=6), SIZES)
def test_tensors_are_split_where_everything_divides_and_nowhere_else(counts: list[int], size: int) -> None:
    model = splits(*counts)
    divides = all(count % size == 0 for count in counts)
    assert (size in model.tensor_sizes) == divides
    if divides:
        check(model, "tensor", size)
        return
    with pytest.raises(ModelLoadError) as refused:
        check(model, "tensor", size)
    failing = [count for count in counts if count % size]
    assert str(failing[0]) in str(refused.value)
    assert possibilities(model) in str(refused.value)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=6), SIZES, st.integers(1, 200))
def test_a_split_adds_up_or_is_refused_with_an_even_one(split: list[int], size: int, num_layers: int) -> None:
    model = splits(num_layers=num_layers)
    if size <= num_layers and len(split) == size and sum(split) == num_layers:
        check(model, "pipeline", size, split)
        return
    with pytest.raises(ModelLoadError) as refused:
        check(model, "pipeline", size, split)
    if size <= num_layers:
        assert ",".join(map(str, even_split(num_layers, size))) in str(refused.value)


@given(st.lists(st.integers(1, 10**6), min_size=1))
def test_splits_are_read_as_they_are_written(split: list[int]) -> None:
    assert parse_split(",".join(map(str, split))) == tuple(split)


@pytest.mark.parametrize("text", ["", "31", "31,", "a,b", "0,61", "-1,62", "31;30", "1.5,2"])
def test_what_is_no_split(text: str) -> None:
    if text == "31":
        assert parse_split(text) == (31,)
        return
    with pytest.raises(ValueError, match="such as 31,30"):
        parse_split(text)


@pytest.mark.parametrize(
    ("model", "parallel", "size", "split", "message"),
    [
        (splits(8, 12), "tensor", 3, None, "divide 8 things of kind 8; possible: tensor over 2 or 4 ranks or pipeline"),
        (
            splits(8, has_tensor=False),
            "tensor",
            2,
            None,
            "has no tensor parallelism for deepseek_v3 models; possible:",
        ),
        (splits(8, has_pipeline=False), "pipeline", 2, None, "models; possible: tensor over 2, 4 or 8 ranks"),
        (splits(7, has_tensor=False, has_pipeline=False), "tensor", 2, None, "possible: one machine only"),
        (splits(8), "tensor", 2, (31, 30), "split applies only to a pipeline"),
        (splits(8, num_layers=3), "pipeline", 4, None, "more ranks than the model's 3 layers"),
        (splits(8), "pipeline", 2, (61,), "split 61 has 1 ranks, not 2; an even split is 31,30"),
        (splits(8), "pipeline", 2, (31, 31), "split 31,31 has 62 layers, but the model has 61"),
        (splits(8, has_uneven=False), "pipeline", 2, (40, 21), "only evenly, 31,30"),
        (splits(8), "tensor", 1, None, "1 ranks are not supported; use 2 to 16"),
        (splits(8), "pipeline", 17, None, "17 ranks are not supported; use 2 to 16"),
        (splits(3, 5, 7, 11), "tensor", 2, None, "7 things of kind 7 and 1 more"),
    ],
)
def test_refusals_say_what_is_possible(
    model: Splits, parallel: str, size: int, split: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(ModelLoadError) as refused:
        check(model, parallel, size, split)  # type: ignore[arg-type]
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_even_split_may_be_named_where_no_other_is_possible() -> None:
    check(splits(8, has_uneven=False), "pipeline", 2, (31, 30))
