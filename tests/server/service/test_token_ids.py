"""The ids that sampling needs, what of them is refused, and the least length through the mock's engine."""

from __future__ import annotations

from contextlib import aclosing, closing
from dataclasses import replace
from typing import Any

import pytest

from mlx_backend.api.interface import EngineConfig, SamplingParams
from mlx_backend.factory import create_engine
from server.errors import APIError
from server.service import generation
from server.service.job import GenerationJob, TextPrompt
from server.service.names import FieldNames
from server.service.registry import ModelRegistry
from server.service.token_ids import check_min_tokens, resolve_sampling, resolve_stop_ids
from server.text.events import Finished, TextDelta
from server.text.tokenizer import ByteTokenizer
from tests.engine_client import until
from tests.fake_engine import FakeEngine, spell
from tests.serving import build_registry

VOCAB = ByteTokenizer.vocab_size
EOS = ByteTokenizer.EOS_ID


class DroppingTokenizer(ByteTokenizer):
    """Knows no asterisk."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return super().encode(text.replace("*", ""), add_special_tokens=add_special_tokens)


def build_job(**changes: Any) -> GenerationJob:
    return GenerationJob(
        request_id="cmpl-1", model="mock", prompts=(TextPrompt("hi"),), names=FieldNames(prompt="prompt"), **changes
    )


def refused(call: Any, *arguments: Any) -> APIError:
    with pytest.raises(APIError) as caught:
        call(*arguments)
    return caught.value


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {EOS}),
        ({"ignore_eos": True}, set()),
        ({"stop_token_ids": (7, 7, 9)}, {EOS, 7, 9}),
        ({"stop_token_ids": (7,), "ignore_eos": True}, {7}),
    ],
)
def test_stop_ids(changes: Any, expected: set[int]) -> None:
    assert resolve_stop_ids(build_job(**changes), ByteTokenizer(), VOCAB) == expected


@pytest.mark.parametrize("token_id", [-1, VOCAB, 2**31 - 1])
def test_ids_that_the_model_has_not(token_id: int) -> None:
    job = build_job(stop_token_ids=(1, token_id), sampling=SamplingParams(allowed_token_ids=(1, token_id)))
    for call, param in ((resolve_stop_ids, "stop_token_ids"), (resolve_sampling, "allowed_token_ids")):
        error = refused(call, job, ByteTokenizer(), VOCAB)
        assert (error.status, error.param, error.code) == (400, param, "invalid_value")
        assert "0 to 259" in error.message


def test_nothing_that_could_be_drawn() -> None:
    sampling = SamplingParams(allowed_token_ids=(7, EOS))
    job = build_job(sampling=sampling, stop_token_ids=(7,), min_tokens=1)
    assert refused(resolve_stop_ids, job, ByteTokenizer(), VOCAB).param == "min_tokens"
    for fine in (build_job(sampling=sampling, min_tokens=1), build_job(sampling=sampling, stop_token_ids=(7,))):
        assert EOS in resolve_stop_ids(fine, ByteTokenizer(), VOCAB)


def test_neutral_sampling_is_as_it_was() -> None:
    sampling = SamplingParams(temperature=0.5)
    assert resolve_sampling(build_job(sampling=sampling), ByteTokenizer(), VOCAB) is sampling


def test_xtc_keeps_the_newline() -> None:
    job = build_job(sampling=SamplingParams(xtc_probability=0.5))
    assert resolve_sampling(job, ByteTokenizer(), VOCAB).xtc_kept_ids == (10,)


@pytest.mark.parametrize(
    ("breakers", "expected"), [(None, b'\n"*:'), ((), b""), (("; ", "!", "!!"), b" !"), (("é",), b"\xa9")]
)
def test_breakers(breakers: tuple[str, ...] | None, expected: bytes) -> None:
    job = build_job(sampling=SamplingParams(dry_multiplier=1.0), dry_sequence_breakers=breakers)
    assert resolve_sampling(job, ByteTokenizer(), VOCAB).dry_breaker_ids == tuple(expected)


def test_a_breaker_that_the_tokenizer_drops_is_none() -> None:
    job = build_job(sampling=SamplingParams(dry_multiplier=1.0))
    assert resolve_sampling(job, DroppingTokenizer(), VOCAB).dry_breaker_ids == tuple(b'\n":')


class SpacedTokenizer(ByteTokenizer):
    """As sentencepiece: a text begins with a space."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return super().encode(" " + text, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize(
    ("tokenizer", "words", "expected"),
    [
        (ByteTokenizer(), ("ab",), (b"ab", b" ab")),
        (ByteTokenizer(), (" ab", "ab"), (b"ab", b" ab")),
        (ByteTokenizer(), (" ",), (b" ", b"  ")[:1]),
        (SpacedTokenizer(), ("ab",), (b" ab", b"ab", b"  ab")),
        (DroppingTokenizer(), ("*",), ()),
    ],
)
def test_spellings_of_bad_words(tokenizer: Any, words: tuple[str, ...], expected: tuple[bytes, ...]) -> None:
    found = resolve_sampling(build_job(bad_words=words), tokenizer, VOCAB).bad_words
    assert sorted(found) == sorted(map(tuple, expected))


def test_a_bad_word_that_the_model_cannot_say() -> None:
    assert resolve_sampling(build_job(bad_words=("ab", "b")), ByteTokenizer(), ord("b")).bad_words == ()


def test_min_tokens_and_max_tokens() -> None:
    check_min_tokens(5, 5, build_job().names)
    error = refused(check_min_tokens, 6, 5, build_job().names)
    assert (error.status, error.param, error.code) == (400, "min_tokens", "invalid_value")
    assert "6" in error.message
    assert "5" in error.message


def test_a_field_is_refused_by_the_name_that_its_dialect_gives_it() -> None:
    names = FieldNames(prompt="text", min_tokens="least", allowed_token_ids="only", stop_token_ids="ends")
    assert refused(check_min_tokens, 6, 5, names).param == "least"
    job = replace(build_job(stop_token_ids=(VOCAB,)), names=names)
    assert refused(resolve_stop_ids, job, ByteTokenizer(), VOCAB).param == "ends"
    sampling = SamplingParams(allowed_token_ids=(ord("a"),))
    job = replace(build_job(stop_token_ids=(ord("a"),), min_tokens=1, sampling=sampling), names=names)
    error = refused(resolve_stop_ids, job, ByteTokenizer(), VOCAB)
    assert error.param == "least" and "'only'" in error.message and "'least'" in error.message


@pytest.mark.parametrize("sizes", [{"max_tokens": 5}, {"default_max_tokens": 5}, {}])
async def test_min_tokens_beyond_what_the_output_may_have(sizes: dict[str, int]) -> None:
    engine = FakeEngine([spell("x")])
    with pytest.raises(APIError) as caught:
        await generation.open(build_registry(engine), build_job(min_tokens=63, **sizes))
    assert (caught.value.param, engine.requests) == ("min_tokens", [])


async def test_what_the_engine_is_asked() -> None:
    engine = FakeEngine([spell("x")])
    sampling = SamplingParams(dry_multiplier=1.0)
    job = build_job(min_tokens=3, stop_token_ids=(65,), sampling=sampling, dry_sequence_breakers=("?",))
    async with aclosing(await generation.open(build_registry(engine), job)):
        (request,) = engine.requests
    assert (request.min_tokens, request.stop_ids) == (3, frozenset({65, EOS}))
    assert request.sampling.dry_breaker_ids == (63,)


async def run(registry: ModelRegistry, **changes: Any) -> tuple[str, str, int]:
    """(text, finish reason, tokens) of a job of at most 200 tokens."""
    job = build_job(max_tokens=200, sampling=SamplingParams(temperature=0), **changes)
    async with aclosing(await generation.open(registry, job)) as stream:
        events = [event async for batch in stream for event in batch]
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    (finished,) = (event for event in events if isinstance(event, Finished))
    return text, finished.reason, finished.num_output_tokens


async def test_stop_ids_and_the_least_length_through_the_engine() -> None:
    """The mock's text is words with spaces between them; a space ends the sequence, and says nothing."""
    engine = create_engine(EngineConfig(model_path="mock", backend="mock"))
    registry = build_registry(engine)
    with closing(engine):
        await until(lambda: engine.model_info is not None)
        whole, reason, _ = await run(registry, ignore_eos=True)
        assert reason == "length"
        word = whole.partition(" ")[0]
        num_bytes = len(word.encode())
        assert await run(registry, ignore_eos=True, stop_token_ids=(32,)) == (word, "stop", num_bytes + 1)
        text, reason, num_tokens = await run(registry, ignore_eos=True, stop_token_ids=(32,), min_tokens=num_bytes + 1)
        assert (" " in text, reason) == (False, "stop")
        assert num_tokens > num_bytes + 1
        assert (await run(registry, ignore_eos=True, stop_token_ids=(32,), min_tokens=200))[1:] == ("length", 200)
        assert await run(registry, ignore_eos=True, stop=(" ",)) == (word, "stop", num_bytes + 1)
        text, reason, num_tokens = await run(registry, ignore_eos=True, stop=(" ",), min_tokens=num_bytes + 1)
        assert (text.count(" "), reason) == (1, "stop")
        assert whole.startswith(text + " ")
        assert num_tokens == len(text.encode()) + 1
