"""The sampling fields beyond OpenAI's own: bounds, names, and what a job has of them, in both dialects."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from mlx_backend.api.interface import SamplingParams
from server.dialects.openai_chat import decode as chat
from server.dialects.openai_chat.schema import ChatRequest
from server.dialects.openai_completions import decode as completions
from server.dialects.openai_completions.schema import CompletionRequest
from server.dialects.openai_shared import SamplingFields, check_extra, decode_sampling
from server.errors import UnsupportedParameter
from server.service.job import GenerationJob

ALL: dict[str, Any] = {
    "typical_p": 0.9,
    "top_n_sigma": 1.5,
    "xtc_probability": 0.5,
    "xtc_threshold": 0.2,
    "dry_multiplier": 0.8,
    "dry_base": 2.0,
    "dry_allowed_length": 3,
    "dry_range": 512,
    "allowed_token_ids": (2, 7),
    "repetition_penalty": 1.2,
}

BAD: list[tuple[str, Any]] = [
    *(("typical_p", value) for value in (0, -1, 1.1, "1", math.nan)),
    *(("top_n_sigma", value) for value in (-2, 101, "1", math.inf)),
    *(("xtc_probability", value) for value in (-0.1, 1.1, True)),
    *(("xtc_threshold", value) for value in (-0.1, 1.1)),
    *(("dry_multiplier", value) for value in (-0.1, 101, math.inf)),
    *(("dry_base", value) for value in (0.9, 9)),
    *(("dry_allowed_length", value) for value in (0, 51, 2.0)),
    *(("dry_range", value) for value in (-1, 1, 8193)),
    *(("dry_sequence_breakers", value) for value in ("\n", [""], [1], ["x" * 65], ["x"] * 65, ["\ud800"])),
    *(("min_tokens", value) for value in (-1, 1.0, "1", True)),
    *(("stop_token_ids", value) for value in (1, [-1], ["1"], [1.0], [True], [2**31], [1] * 65)),
    *(("bad_words", value) for value in ("x", [""], [1], ["x" * 257], ["x"] * 257, ["\ud800"])),
    *(("allowed_token_ids", value) for value in ([], [-1], [True], 5)),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: repr(value)[:30])
def test_bad_fields(name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        SamplingFields.model_validate({name: value})
    assert caught.value.errors()[0]["loc"][0] == name


def test_sampling() -> None:
    fields = SamplingFields.model_validate({**ALL, "allowed_token_ids": [7, 2, 7]})
    assert decode_sampling(fields, None) == SamplingParams(**ALL)


@pytest.mark.parametrize(
    "neutral",
    [
        {"typical_p": 1, "top_n_sigma": -1, "xtc_probability": 0, "dry_multiplier": 0},
        {"top_n_sigma": 0, "dry_sequence_breakers": [], "min_tokens": 0, "stop_token_ids": [], "repeat_penalty": 1},
    ],
)
def test_neutral_values(neutral: dict[str, Any]) -> None:
    fields = SamplingFields.model_validate(neutral)
    assert decode_sampling(fields, None) == SamplingParams()
    assert not fields.model_extra


def test_the_other_name_of_the_repetition_penalty() -> None:
    fields = SamplingFields.model_validate({"repeat_penalty": 1.5})
    assert decode_sampling(fields, None).repetition_penalty == 1.5


def test_both_names_of_the_repetition_penalty() -> None:
    fields = SamplingFields.model_validate({"repeat_penalty": 1.5, "repetition_penalty": 1.2})
    with pytest.raises(UnsupportedParameter):
        check_extra(fields.model_extra or {}, completions._UNSUPPORTED, ())


def jobs(**body: Any) -> list[GenerationJob]:
    """Of the same fields, in both dialects."""
    messages = [{"role": "user", "content": "x"}]
    return [
        completions.decode(CompletionRequest.model_validate({"prompt": "x", **body}), "1")[0],
        chat.decode(ChatRequest.model_validate({"messages": messages, **body}), "1")[0],
    ]


def test_what_a_job_has_of_them() -> None:
    body = {
        **ALL,
        "allowed_token_ids": [7, 2],
        "bad_words": ["x", "y"],
        "min_tokens": 2,
        "stop_token_ids": [5],
        "dry_sequence_breakers": ["?"],
    }
    for job in jobs(max_tokens=9, **body):
        assert (job.min_tokens, job.stop_token_ids, job.dry_sequence_breakers) == (2, (5,), ("?",))
        assert job.bad_words == ("x", "y")
        assert job.sampling == SamplingParams(**ALL)


def test_what_a_job_has_of_nothing() -> None:
    for job in jobs():
        assert (job.min_tokens, job.stop_token_ids, job.dry_sequence_breakers) == (0, (), None)
        assert job.sampling == SamplingParams()
    assert [job.dry_sequence_breakers for job in jobs(dry_sequence_breakers=[])] == [(), ()]
