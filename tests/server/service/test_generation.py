"""What is refused before the engine is asked, what the engine is asked, and the stream that comes of it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import Any

import pytest

from mlx_backend.api.errors import ContextLengthExceeded, EngineDead, EngineNotReady, QueueFull, SequenceFailed
from mlx_backend.api.interface import ModelInfo, SamplingParams
from server.errors import APIError, InvalidRequest, ModelNotFound
from server.security.rate import Account
from server.security.tenant import Tenant
from server.service import encoding, generation
from server.service.job import ChatPrompt, GenerationJob, TextPrompt, TokenPrompt
from server.service.names import FieldNames
from server.text.events import Finished, OutputEvent, TextDelta, Usage
from server.text.tokenizer import ByteTokenizer
from tests.fake_engine import HANG, FakeEngine, one_by_one, spell
from tests.serving import build_registry

LIMIT = 64


def build_job(*prompts: Any, **changes: Any) -> GenerationJob:
    return GenerationJob(
        request_id="cmpl-1",
        model="mock",
        prompts=prompts or (TextPrompt("hi"),),
        names=FieldNames(prompt="prompt"),
        **changes,
    )


async def run(engine: FakeEngine, job: GenerationJob) -> list[OutputEvent]:
    async with aclosing(await generation.open(build_registry(engine), job)) as stream:
        return [event async for batch in stream for event in batch]


async def refused(job: GenerationJob, engine: FakeEngine | None = None) -> APIError:
    engine = engine or FakeEngine()
    with pytest.raises(APIError) as caught:
        await generation.open(build_registry(engine), job)
    assert not engine.requests
    return caught.value


async def test_what_the_engine_is_asked() -> None:
    engine = FakeEngine([spell("x"), spell("x", index=1), spell("x", index=2), spell("x", index=3)])
    sampling = SamplingParams(temperature=0, seed=7)
    job = build_job(TextPrompt("hi"), TokenPrompt((1, 2, 3)), n=2, max_tokens=5, sampling=sampling)
    await run(engine, job)
    first, second = engine.requests
    assert (first.request_id, second.request_id) == ("cmpl-1-0", "cmpl-1-1")
    assert first.prompt_ids == (ByteTokenizer.BOS_ID, *b"hi")
    assert second.prompt_ids == (1, 2, 3)
    assert (first.n, first.max_tokens, first.sampling) == (2, 5, sampling)
    assert first.stop_ids == {ByteTokenizer.EOS_ID}


async def test_ignore_eos_leaves_no_stop_ids() -> None:
    engine = FakeEngine([spell("x")])
    await run(engine, build_job(ignore_eos=True))
    assert engine.requests[0].stop_ids == frozenset()


@pytest.mark.parametrize(
    ("max_tokens", "default", "num_prompt", "expected"),
    [
        (10, 16, 4, 10),
        (60, None, 4, 60),
        (None, 16, 4, 16),
        (None, 16, 60, 4),
        (None, None, 4, 60),
        (None, None, 63, 1),
    ],
)
async def test_max_tokens(max_tokens: int | None, default: int | None, num_prompt: int, expected: int) -> None:
    engine = FakeEngine([spell("x")])
    prompt = TokenPrompt((1,) * num_prompt)
    await run(engine, build_job(prompt, max_tokens=max_tokens, default_max_tokens=default))
    assert engine.requests[0].max_tokens == expected


@pytest.mark.parametrize(
    ("max_tokens", "default", "num_prompt", "asked"),
    [(61, None, 4, 61), (1, None, 64, 1), (None, 16, 64, 1), (None, None, 64, 1), (None, None, 100, 1)],
)
async def test_over_the_limit(max_tokens: int | None, default: int | None, num_prompt: int, asked: int) -> None:
    prompt = TokenPrompt((1,) * num_prompt)
    error = await refused(build_job(prompt, max_tokens=max_tokens, default_max_tokens=default))
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "prompt")
    assert error.message == str(ContextLengthExceeded(num_prompt, asked, LIMIT))


async def test_every_prompt_is_checked() -> None:
    error = await refused(build_job(TokenPrompt((1,)), TokenPrompt((1,) * 100)))
    assert error.code == "context_length_exceeded"


@pytest.mark.parametrize("prompt", [TextPrompt(""), TokenPrompt(())])
async def test_an_empty_prompt(prompt: Any) -> None:
    error = await refused(build_job(prompt))
    assert (error.status, error.param) == (400, "prompt")
    assert "empty" in error.message


@pytest.mark.parametrize("ids", [(260,), (1, -1), (2**70,)])
async def test_ids_out_of_the_vocabulary(ids: tuple[int, ...]) -> None:
    error = await refused(build_job(TokenPrompt(ids)))
    assert (error.status, error.param) == (400, "prompt")
    assert "0 to 259" in error.message


async def test_a_bias_for_a_token_that_is_not() -> None:
    error = await refused(build_job(sampling=SamplingParams(logit_bias=((260, 1.0),))))
    assert (error.status, error.param) == (400, "logit_bias")


async def test_an_unknown_model() -> None:
    job = GenerationJob(request_id="1", model="other", prompts=(TextPrompt("x"),), names=FieldNames(prompt="prompt"))
    assert isinstance(await refused(job), ModelNotFound)


async def test_the_template_is_quoted() -> None:
    error = await refused(build_job(ChatPrompt(())))
    assert isinstance(error, InvalidRequest)
    assert "at least one message" in error.message


async def test_a_long_text_is_encoded_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "LONG_TEXT_CHARS", 3)
    calls = []

    async def run_in_text_thread(function: Any, *args: Any) -> Any:
        calls.append(args)
        return function(*args)

    monkeypatch.setattr(encoding, "run_in_text_thread", run_in_text_thread)
    engine = FakeEngine([spell("x"), spell("x", index=1)])
    messages = ({"role": "user", "content": "long"},)
    await run(engine, build_job(TextPrompt("abc"), ChatPrompt(messages)))
    assert len(calls) == 1
    assert bytes(engine.requests[1].prompt_ids) == b"user: long\nassistant:"


async def test_a_model_that_is_not_ready() -> None:
    with pytest.raises(EngineNotReady):
        await generation.open(build_registry(FakeEngine(is_loaded=False)), build_job())


async def test_a_full_queue() -> None:
    engine = FakeEngine()
    engine.refusal = QueueFull(3)
    with pytest.raises(QueueFull):
        await generation.open(build_registry(engine), build_job())


async def test_deltas_end_and_usage() -> None:
    events = await run(FakeEngine(one_by_one("ab", reason="stop")), build_job())
    # the end token "b" is not text
    assert events == [TextDelta(0, "a"), Finished(0, "stop", 2), Usage(3, 0, 2)]


async def test_a_batch_is_passed_on_as_one() -> None:
    engine = FakeEngine([spell("ab", reason=None), spell("c")])
    async with aclosing(await generation.open(build_registry(engine), build_job())) as stream:
        batches = [batch async for batch in stream]
    assert [len(batch) for batch in batches] == [2, 3]
    assert engine.streams[0].num_closed == 1


async def test_text_that_is_held_back_makes_no_empty_batch() -> None:
    engine = FakeEngine(one_by_one("é"))
    async with aclosing(await generation.open(build_registry(engine), build_job())) as stream:
        assert await anext(stream) == [TextDelta(0, "é"), Finished(0, "length", 2), Usage(3, 0, 2)]


async def test_a_stop_string_aborts_its_choice_alone() -> None:
    script = [spell("aSTOPrest", reason=None), spell("aSTOP"[:3], index=1), spell("more", reason=None)]
    engine = FakeEngine(script)
    events = await run(engine, build_job(n=2, stop=("STOP",)))
    assert (engine.streams[0].finished, engine.streams[0].aborted) == ([0], [])
    assert [event for event in events if isinstance(event, Finished)] == [
        Finished(0, "stop", 5, stop="STOP"),
        Finished(1, "length", 3),
    ]
    assert events[-1] == Usage(3, 0, 8)
    # nothing is read of an engine that is no longer needed
    assert engine.streams[0].num_read == 2


async def test_an_engine_failure(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine([spell("a", reason=None), SequenceFailed("it broke")])
    stream = await generation.open(build_registry(engine), build_job())
    async with aclosing(stream):
        assert await anext(stream) == [TextDelta(0, "a")]
        with pytest.raises(SequenceFailed):
            await anext(stream)
    assert engine.streams[0].num_closed == 1
    assert "failed (SequenceFailed: it broke)" in caplog.text


async def test_a_stream_that_ends_too_early_is_an_error() -> None:
    with pytest.raises(EngineDead):
        await run(FakeEngine([spell("a", reason=None)]), build_job())


async def test_leaving_early(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pippin.request")
    engine = FakeEngine([spell("a", reason=None), HANG])
    stream = await generation.open(build_registry(engine), build_job())
    await anext(stream)
    await stream.aclose()
    await stream.aclose()
    assert engine.streams[0].num_closed == 1
    assert caplog.text.count("finish=aborted") == 1
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_progress_and_cached_tokens_are_the_engines() -> None:
    engine = FakeEngine([spell("a")], info=ModelInfo(context_limit=LIMIT, vocab_size=260))
    async with aclosing(await generation.open(build_registry(engine), build_job())) as stream:
        assert stream.progress.num_computed_tokens == 43
        engine.streams[0].num_cached_tokens = 2
        events = [event async for batch in stream for event in batch]
    assert events[-1] == Usage(3, 2, 1)


def talk(*lengths: int) -> ChatPrompt:
    """A system message, and turns whose questions are so long."""
    turns = [{"role": "user", "content": chr(97 + place) * length} for place, length in enumerate(lengths)]
    answered = [message for turn in turns[:-1] for message in (turn, {"role": "assistant", "content": "ok"})]
    return ChatPrompt(({"role": "system", "content": "S"}, *answered, turns[-1]))


async def prompt_of(job: GenerationJob, *, truncates: bool = True, limit: int = 120) -> tuple[str, Usage]:
    engine = FakeEngine([spell("x")], info=ModelInfo(context_limit=limit, vocab_size=260))
    async with aclosing(await generation.open(build_registry(engine), job, truncates=truncates)) as stream:
        events = [event async for batch in stream for event in batch]
        assert isinstance(events[-1], Usage)
        assert stream.num_truncated_tokens == events[-1].num_truncated_tokens
    return bytes(engine.requests[0].prompt_ids).decode(), events[-1]


async def test_the_oldest_turns_of_a_long_chat_go_and_are_counted() -> None:
    whole, usage = await prompt_of(build_job(talk(90, 2, 2), max_tokens=1), limit=200)
    assert usage.num_truncated_tokens == 0
    cut, usage = await prompt_of(build_job(talk(90, 2, 2), max_tokens=1))
    assert cut == whole.replace("user: " + "a" * 90 + "\nassistant: ok\n", "")
    assert (usage.num_prompt_tokens, usage.num_truncated_tokens) == (len(cut), len(whole) - len(cut))


async def test_a_chat_is_cut_no_further_than_its_answer_needs() -> None:
    for max_tokens, kept in ((39, "aaaabbbbcccc"), (40, "bbbbcccc"), (75, "cccc"), (None, "aaaabbbbcccc")):
        cut, _ = await prompt_of(build_job(talk(4, 4, 4), max_tokens=max_tokens))
        assert "".join(character for character in cut.replace("assistant", "") if character in "abc") == kept


async def test_a_chat_is_whole_or_refused_where_turns_may_not_go_or_would_not_help() -> None:
    with pytest.raises(APIError, match="maximum context length"):
        await prompt_of(build_job(talk(90, 2, 2), max_tokens=30), truncates=False)
    for job in (build_job(talk(2, 2, 120), max_tokens=1), build_job(talk(2, 2), max_tokens=120)):
        with pytest.raises(APIError, match="maximum context length"):
            await prompt_of(job)


@pytest.mark.parametrize(("length", "is_cut"), [(25, False), (26, True)])
async def test_an_answer_of_unknown_length_is_left_a_quarter_of_a_small_context(length: int, is_cut: bool) -> None:
    whole, _ = await prompt_of(build_job(talk(2, length)), limit=4000)
    _, usage = await prompt_of(build_job(talk(2, length)), limit=(len(whole) - is_cut) * 4 // 3)
    assert bool(usage.num_truncated_tokens) == is_cut


async def test_who_leaves_while_the_prompt_is_being_encoded_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    entered = asyncio.Event()

    async def encode(*_: object) -> None:
        entered.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(generation, "encode_prompt", encode)
    registry = build_registry(FakeEngine([spell("x")]))
    opening = asyncio.create_task(generation.open(registry, build_job()))
    await entered.wait()
    (model,) = registry.list()
    assert model.num_users == 1
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert model.num_users == 0


async def test_only_a_chat_is_cut() -> None:
    with pytest.raises(APIError, match="maximum context length"):
        await prompt_of(build_job(TextPrompt("a" * 130), max_tokens=1))


# --- large answers


@pytest.mark.parametrize("is_whole", [True, False])
async def test_more_log_probabilities_than_an_answer_can_have(monkeypatch: pytest.MonkeyPatch, is_whole: bool) -> None:
    monkeypatch.setattr(generation, "MOST_LOGPROBS", 100)
    registry = build_registry(FakeEngine([spell("x")]))
    fits = build_job(n=2, max_tokens=10, sampling=SamplingParams(num_logprobs=4))
    await (await generation.open(registry, fits, is_whole=is_whole)).aclose()
    large = build_job(n=2, max_tokens=11, sampling=SamplingParams(num_logprobs=4))
    if is_whole:
        with pytest.raises(InvalidRequest, match="up to 110 log-probabilities") as caught:
            await generation.open(registry, large, is_whole=True)
        assert caught.value.code == "answer_too_large"
    else:
        await (await generation.open(registry, large)).aclose()
    prompts = build_job(TokenPrompt(tuple(range(26))), n=2, num_prompt_logprobs=1, max_tokens=0)
    with pytest.raises(InvalidRequest, match="up to 104"):
        await generation.open(registry, prompts, is_whole=is_whole)


async def test_each_choice_takes_its_tokens_of_the_account() -> None:
    account = Account(None, 1000)
    tenant = Tenant("alice", account)
    job = build_job(TextPrompt("x" * 10), n=3, max_tokens=20, tenant=tenant)
    async with aclosing(await generation.open(build_registry(FakeEngine([HANG])), job)):
        assert account.headers()["x-ratelimit-remaining-tokens"] == str(1000 - 11 - 3 * 20)
