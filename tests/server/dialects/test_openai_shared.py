"""What OpenAI's dialects share: strict fields, what is refused and what is ignored, the parts of answers."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from mlx_backend.api.interface import SamplingParams
from server.dialects.openai_shared import (
    UNSUPPORTED,
    SamplingFields,
    check_extra,
    check_stream_options,
    decode_sampling,
)
from server.errors import InvalidRequest, UnsupportedParameter

GOOD: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 2},
    {"temperature": None},
    {"top_p": 1},
    {"top_p": 0},
    {"top_k": -1},
    {"stop": "x"},
    {"stop": ["x"] * 16},
    {"stop": []},
    {"seed": -(2**63)},
    {"seed": 2**64 - 1},
    {"logit_bias": {"50256": -100}},
    {"stream_options": {}},
]
BAD: list[tuple[str, Any]] = [
    ("n", 0),
    ("n", 129),
    ("n", "2"),
    ("n", 1.0),
    ("n", True),
    ("max_tokens", 0),
    ("max_tokens", -4),
    ("max_tokens", "16"),
    ("max_tokens", 1.5),
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("temperature", "1"),
    ("temperature", True),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("top_p", -0.1),
    ("top_p", 1.1),
    ("top_k", -2),
    ("top_k", 1.5),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", ["x"] * 17),
    ("stop", [1]),
    ("stop", 1),
    ("stop", {"a": 1}),
    ("stop", "\ud800"),
    ("seed", 2**64),
    ("seed", -(2**63) - 1),
    ("seed", 1.5),
    ("seed", "1"),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("frequency_penalty", math.nan),
    ("repetition_penalty", 0),
    ("repetition_penalty", -1),
    ("logit_bias", {"a": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"1": 101}),
    ("logit_bias", {"1": "1"}),
    ("logit_bias", {"1": math.nan}),
    ("logit_bias", {"9" * 5000: 1}),
    ("logit_bias", [1]),
    ("stream", "true"),
    ("stream", 1),
    ("stream_options", True),
    ("stream_options", {"include_usage": "yes"}),
    ("ignore_eos", 1),
    ("model", 7),
    ("user", 7),
]


@pytest.mark.parametrize("fields", GOOD, ids=repr)
def test_good_fields(fields: dict[str, Any]) -> None:
    SamplingFields.model_validate(fields)


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: repr(value)[:30])
def test_bad_fields(name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        SamplingFields.model_validate({name: value})
    assert caught.value.errors()[0]["loc"][0] == name


def test_absent_and_null_are_neutral() -> None:
    nulls = dict.fromkeys(SamplingFields.model_fields)
    for fields in ({}, nulls):
        assert decode_sampling(SamplingFields.model_validate(fields), None) == SamplingParams()


def test_sampling() -> None:
    fields = SamplingFields.model_validate(
        {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.1,
            "presence_penalty": 0.1,
            "frequency_penalty": 0.2,
            "repetition_penalty": 1.1,
            "logit_bias": {"7": 1, "3": -2.5},
            "seed": 5,
        }
    )
    assert decode_sampling(fields, 3) == SamplingParams(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.1,
        logit_bias=((3, -2.5), (7, 1.0)),
        seed=5,
        num_logprobs=3,
    )


@pytest.mark.parametrize(("seed", "expected"), [(0, 0), (-1, 2**64 - 1), (2**64 - 1, 2**64 - 1), (-(2**63), 2**63)])
def test_seeds_are_64_bits(seed: int, expected: int) -> None:
    assert decode_sampling(SamplingFields.model_validate({"seed": seed}), None).seed == expected


def test_top_k_of_minus_one_is_off() -> None:
    assert decode_sampling(SamplingFields.model_validate({"top_k": -1}), None).top_k == 0


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_fields(name: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        check_extra({name: {"some": "thing"}}, UNSUPPORTED, ())
    assert caught.value.param == name
    for neutral in (None, *UNSUPPORTED[name]):
        assert check_extra({name: neutral}, UNSUPPORTED, ()) == []


@pytest.mark.parametrize(("name", "value"), [("use_beam_search", 0), ("min_length", False), ("length_penalty", True)])
def test_a_neutral_value_has_the_right_type(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedParameter):
        check_extra({name: value}, UNSUPPORTED, ())


def test_unknown_fields_are_named() -> None:
    assert check_extra({"a": 1, "user": 2, "b": None}, UNSUPPORTED, {"user"}) == ["a", "b"]


def test_stream_options_need_a_stream() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_stream_options(SamplingFields.model_validate({"stream_options": {"include_usage": True}}))
    assert caught.value.param == "stream_options"


def test_unknown_and_unsupported_stream_options() -> None:
    options = {"x": 1, "include_obfuscation": False, "continuous_usage_stats": False}
    fields = SamplingFields.model_validate({"stream": True, "stream_options": options})
    assert check_stream_options(fields) == ["stream_options.x"]
    fields = SamplingFields.model_validate({"stream": True, "stream_options": {"continuous_usage_stats": True}})
    with pytest.raises(UnsupportedParameter) as caught:
        check_stream_options(fields)
    assert caught.value.param == "stream_options.continuous_usage_stats"
