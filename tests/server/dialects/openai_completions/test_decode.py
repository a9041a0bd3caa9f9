"""From the body of a completion to a job."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from server.dialects.openai_completions.decode import decode
from server.dialects.openai_completions.schema import CompletionRequest
from server.dialects.openai_prompts import MAX_PROMPTS
from server.errors import UnsupportedParameter
from server.service.job import GenerationJob, TextPrompt, TokenPrompt


def decoded(**body: Any) -> tuple[GenerationJob, list[str]]:
    return decode(CompletionRequest.model_validate({"prompt": "x", **body}), "r1")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hi", (TextPrompt("hi"),)),
        (["a", "b"], (TextPrompt("a"), TextPrompt("b"))),
        ([1, 2], (TokenPrompt((1, 2)),)),
        ([[1, 2], [3]], (TokenPrompt((1, 2)), TokenPrompt((3,)))),
        ([[]], (TokenPrompt(()),)),  # the service refuses it, as it does ""
    ],
)
def test_prompts(prompt: Any, expected: Any) -> None:
    assert decoded(prompt=prompt)[0].prompts == expected


@pytest.mark.parametrize(
    "prompt",
    [None, 7, {}, [], [None], ["a", 1], [1, "a"], [1, [2]], [True], [[True]], [1.5], [["a"]], "\ud800", ["\udfff"]],
)
def test_bad_prompts(prompt: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        decoded(prompt=prompt)
    assert [error["loc"] for error in caught.value.errors()] == [("prompt",)]


@pytest.mark.parametrize("logprobs", [-1, 21, True, 1.0, "1"])
def test_bad_logprobs(logprobs: Any) -> None:
    with pytest.raises(ValidationError):
        decoded(logprobs=logprobs)


def test_defaults() -> None:
    job, ignored = decoded()
    assert (job.request_id, job.model, job.n, job.max_tokens, job.default_max_tokens) == ("cmpl-r1", "", 1, None, 16)
    assert (job.stop, job.ignore_eos, job.sampling.num_logprobs, job.names.prompt) == ((), False, None, "prompt")
    assert ignored == []


def test_everything() -> None:
    job, _ = decoded(model="m", n=2, max_tokens=5, logprobs=3, stop="x", ignore_eos=True, seed=7, user="me")
    assert (job.model, job.n, job.max_tokens, job.stop, job.ignore_eos) == ("m", 2, 5, ("x",), True)
    assert (job.sampling.num_logprobs, job.sampling.seed) == (3, 7)


def test_no_logprobs_is_not_zero_logprobs() -> None:
    assert decoded(logprobs=0)[0].sampling.num_logprobs == 0


@pytest.mark.parametrize(
    ("name", "value"), [("prompt_logprobs", 1), ("prompt_embeds", "x"), ("regex", "a"), ("use_beam_search", True)]
)
def test_unsupported(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        decoded(**{name: value})
    assert caught.value.param == name


def test_neutral_values_of_unsupported_fields() -> None:
    assert decoded(echo=False, suffix=None, best_of=3, n=3, response_format={"type": "text"})[1] == []


def test_unknown_fields() -> None:
    assert decoded(foo=1, stream=True, stream_options={"bar": 1})[1] == ["foo", "stream_options.bar"]


@pytest.mark.parametrize("prompt", ["a", [1]])
def test_more_prompts_than_may_be_are_refused_before_they_are_looked_at(prompt: Any) -> None:
    CompletionRequest.model_validate({"prompt": [prompt] * MAX_PROMPTS})
    with pytest.raises(ValidationError, match="at most 2048"):
        CompletionRequest.model_validate({"prompt": [prompt] * (MAX_PROMPTS + 1)})
    CompletionRequest.model_validate({"prompt": [1] * (MAX_PROMPTS + 1)})
