"""Completions through the application: echo, log-probabilities of prompts, best_of, suffix, ids; whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai.types import Completion

from mlx_backend.api.interface import FinishReason, ModelInfo, TokenEvent, TokenLogprobs
from server.app import create_app
from server.config import Config
from server.service.registry import ModelRegistry, ServedModel
from server.text.tokenizer import ByteTokenizer
from tests.fake_engine import Batch, FakeEngine, prompted, spell
from tests.serving import client_of, mock_engine, wait_until

BOS = 257


async def post(engine: Any, **body: Any) -> httpx.Response:
    async with client_of(engine) as client:
        return await client.post("/v1/completions", json={"prompt": "ab", **body})


async def answered(engine: Any, **body: Any) -> dict[str, Any]:
    answer = await post(engine, **body)
    assert answer.status_code == 200, answer.text
    Completion.model_validate(without_nulls(answer.json()))
    return dict(answer.json())


def without_nulls(answer: dict[str, Any]) -> dict[str, Any]:
    """The SDK's type has no null for a prompt's first token, which OpenAI's own answers have."""
    for choice in answer["choices"]:
        for name in ("token_logprobs", "top_logprobs"):
            if choice["logprobs"] and choice["logprobs"][name]:
                choice["logprobs"][name] = [value for value in choice["logprobs"][name] if value is not None]
    return answer


async def refused(engine: Any, **body: Any) -> dict[str, Any]:
    answer = await post(engine, **body)
    assert answer.status_code == 400, answer.text
    return dict(answer.json()["error"])


async def streamed(engine: Any, **body: Any) -> list[dict[str, Any]]:
    """The choices of all chunks."""
    answer = await post(engine, stream=True, **body)
    assert answer.status_code == 200, answer.text
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: {")]
    return [choice for event in events for choice in json.loads(event)["choices"]]


# ---- echo


async def test_echo() -> None:
    engine = FakeEngine([spell("xy")])
    answer = await answered(engine, echo=True)
    assert [(choice["text"], choice["logprobs"]) for choice in answer["choices"]] == [("abxy", None)]
    assert engine.requests[0].num_prompt_logprobs is None


async def test_echo_of_token_ids_is_their_decoding() -> None:
    answer = await answered(FakeEngine([spell("x")]), prompt=[BOS, *"é!".encode()], echo=True)
    assert answer["choices"][0]["text"] == "é!x"


async def test_echo_of_several_prompts_and_choices() -> None:
    engine = FakeEngine([(*spell("0"), *spell("1", index=1), *spell("2", index=2), *spell("3", index=3))])
    answer = await answered(engine, prompt=["é", "b"], n=2, echo=True)
    assert [choice["text"] for choice in answer["choices"]] == ["é0", "é1", "b2", "b3"]


async def test_echo_is_streamed_first() -> None:
    engine = FakeEngine([spell("x", index=1), spell("yz")])
    choices = await streamed(engine, n=2, echo=True)
    assert [(choice["index"], choice["text"], choice["finish_reason"]) for choice in choices] == [
        (1, "ab", None),
        (1, "x", None),
        (1, "", "length"),
        (0, "ab", None),
        (0, "y", None),
        (0, "z", None),
        (0, "", "length"),
    ]


# ---- log-probabilities of the prompt


LOGPROBS = {
    # the tokenizer's own first token is not in the text, and takes no room in it
    "tokens": ["<bos>", "a", "b", "x"],
    "token_logprobs": [None, -1.0, -2.0, -0.5],
    "top_logprobs": [None, {"\x00": 0.0, "a": -1.0}, {"\x00": 0.0, "b": -2.0}, {"x": -0.5}],
    "text_offset": [0, 0, 1, 2],
}


async def test_logprobs_with_echo() -> None:
    engine = FakeEngine([(prompted(3, num_top=1),), spell("x", logprob=-0.5)])
    answer = await answered(engine, echo=True, logprobs=1)
    assert answer["choices"] == [{"index": 0, "text": "abx", "logprobs": LOGPROBS, "finish_reason": "length"}]
    assert engine.requests[0].num_prompt_logprobs == engine.requests[0].sampling.num_logprobs == 1


async def test_logprobs_with_echo_streamed() -> None:
    engine = FakeEngine([(prompted(3, num_top=1), *spell("x", logprob=-0.5))])
    first, second, last = await streamed(engine, echo=True, logprobs=1)
    assert (first["text"], second["text"], last["text"]) == ("ab", "x", "")
    assert {name: first["logprobs"][name] + second["logprobs"][name] for name in LOGPROBS} == LOGPROBS
    assert last["logprobs"] is None


@pytest.mark.parametrize("stream", [False, True])
async def test_the_log_likelihood_of_a_prompt(stream: bool) -> None:
    """As lm-evaluation-harness asks for it."""
    body = {"prompt": [[97, 98, 99], [100, 101]], "max_tokens": 0, "temperature": 0, "echo": True, "logprobs": 1}
    engine = FakeEngine([(prompted(3, num_top=2, ends=True),), (prompted(2, index=1, num_top=2, ends=True),)])
    if stream:
        chunks = await streamed(engine, **body)
        assert [chunk["finish_reason"] for chunk in chunks] == [None, "length"] * 2
        choices = chunks[::2]
    else:
        answer = await answered(engine, **body)
        assert answer["usage"]["completion_tokens"] == 0
        assert answer["usage"]["prompt_tokens"] == 5
        choices = answer["choices"]
        assert [choice["finish_reason"] for choice in choices] == ["length", "length"]
    assert [choice["text"] for choice in choices] == ["abc", "de"]
    assert [choice["logprobs"]["token_logprobs"] for choice in choices] == [[None, -1.0, -2.0], [None, -1.0]]
    assert [choice["logprobs"]["text_offset"] for choice in choices] == [[0, 1, 2], [0, 1]]
    assert choices[0]["logprobs"]["top_logprobs"][1] == {"\x00": 0.0, "\x01": -0.125, "b": -1.0}
    assert [request.max_tokens for request in engine.requests] == [0, 0]


async def test_no_likely_tokens_where_none_are_asked_for() -> None:
    engine = FakeEngine([(prompted(3, ends=True),)])
    answer = await answered(engine, echo=True, logprobs=0, max_tokens=0)
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["<bos>", "a", "b"],
        "token_logprobs": [None, -1.0, -2.0],
        "top_logprobs": None,
        "text_offset": [0, 0, 1],
    }


async def test_a_prompt_of_one_token() -> None:
    engine = FakeEngine([(prompted(1), *spell("x", logprob=-0.5))])
    answer = await answered(engine, prompt=[97], echo=True, logprobs=1)
    assert answer["choices"][0]["logprobs"]["top_logprobs"] == [None, {"x": -0.5}]
    assert answer["choices"][0]["logprobs"]["text_offset"] == [0, 1]


async def test_parts_of_a_character_in_a_prompt_share_its_place() -> None:
    engine = FakeEngine([(prompted(4), *spell("x", logprob=-0.5))])
    answer = await answered(engine, prompt=list("né!".encode()), echo=True, logprobs=0)
    assert answer["choices"][0]["logprobs"]["text_offset"] == [0, 1, 1, 2, 3]


async def test_logprobs_without_echo_are_the_outputs_alone() -> None:
    engine = FakeEngine([spell("x", logprob=-0.5)])
    answer = await answered(engine, logprobs=1)
    assert answer["choices"][0]["logprobs"]["tokens"] == ["x"]
    assert engine.requests[0].num_prompt_logprobs is None


async def test_no_tokens_at_all() -> None:
    engine = FakeEngine([(prompted(1, ends=True),)])
    answer = await answered(engine, max_tokens=0)
    assert answer["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]


async def test_the_whole_of_it_on_the_real_engine() -> None:
    engine = mock_engine()
    async with client_of(engine) as client:
        wait_until(lambda: engine.model_info is not None)
        body = {"prompt": ["hello", "you"], "echo": True, "logprobs": 2, "n": 2, "max_tokens": 3, "ignore_eos": True}
        whole = (await client.post("/v1/completions", json=body)).json()
        silent = (await client.post("/v1/completions", json={**body, "max_tokens": 0})).json()
    engine.close()
    for choice, without in zip(whole["choices"], silent["choices"], strict=True):
        logprobs = choice["logprobs"]
        assert choice["text"].startswith(without["text"])
        assert {len(values) for values in logprobs.values()} == {len(without["text"]) + 1 + 3}
        for name, values in logprobs.items():
            assert values[:-3] == without["logprobs"][name]
        for token, offset in zip(logprobs["tokens"][1:], logprobs["text_offset"][1:], strict=True):
            assert choice["text"][offset:].startswith(token)


async def test_one_token_more_than_the_prompts_is_there_when_it_is_the_end_token() -> None:
    """Who scores a text leaves the last token out: it must not be the text's own."""
    end = TokenEvent(0, 256, TokenLogprobs(-0.5, ((256, -0.5),)), "stop")
    script = [(prompted(3, num_top=1), end)]
    body = {"echo": True, "logprobs": 1, "max_tokens": 1}
    (choice,) = (await answered(FakeEngine(script), **body))["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "stop")
    assert choice["logprobs"]["tokens"] == ["<bos>", "a", "b", "<eos>"]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -2.0, -0.5]
    assert choice["logprobs"]["top_logprobs"][-1] == {"<eos>": -0.5}
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 2]
    prompt, last = await streamed(FakeEngine(script), **body)
    assert prompt["logprobs"]["tokens"] + last["logprobs"]["tokens"] == choice["logprobs"]["tokens"]
    assert (last["text"], last["logprobs"]["text_offset"], last["finish_reason"]) == ("", [2], "stop")


async def test_no_end_token_after_a_stop_string_or_unasked() -> None:
    stopped = await answered(FakeEngine([spell("abc", reason=None, logprob=-1.0)]), stop="b", logprobs=0)
    assert stopped["choices"][0]["logprobs"]["tokens"] == ["a"]
    ended = FakeEngine([(TokenEvent(0, 97), TokenEvent(0, 256, None, "stop"))])
    assert (await answered(ended))["choices"][0]["logprobs"] is None


# ---- best_of


def candidate(index: int, text: str, *logprobs: float, end: float | None = None) -> Batch:
    pairs = zip(text.encode(), logprobs, strict=True)
    events = [TokenEvent(index, byte, TokenLogprobs(logprob)) for byte, logprob in pairs]
    reason: FinishReason = "length" if end is None else "stop"
    if end is not None:
        events.append(TokenEvent(index, 256, TokenLogprobs(end)))
    last = events.pop()
    return (*events, TokenEvent(index, last.token_id, last.logprobs, reason))


async def test_best_of_shows_the_likeliest_per_token_and_counts_all() -> None:
    engine = FakeEngine(
        [
            candidate(0, "aaaa", -1.0, -1.0, -1.0, -1.0),
            candidate(1, "b", -1.5),
            candidate(2, "cc", -0.9, -0.9),
            candidate(3, "d", -0.1, end=-3.0),
        ]
    )
    answer = await answered(engine, n=2, best_of=4)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [(0, "cc"), (1, "aaaa")]
    assert [choice["logprobs"] for choice in answer["choices"]] == [None, None]
    assert answer["usage"]["completion_tokens"] == 9
    assert (engine.requests[0].n, engine.requests[0].sampling.num_logprobs) == (4, 0)


async def test_best_of_ranks_prompt_by_prompt() -> None:
    engine = FakeEngine(
        [candidate(0, "a", -2.0), candidate(1, "b", -1.0), candidate(2, "c", -0.1), candidate(3, "d", -0.2)]
    )
    answer = await answered(engine, prompt=["x", "y"], best_of=2, logprobs=0, echo=False)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [(0, "b"), (1, "c")]
    assert [choice["logprobs"]["token_logprobs"] for choice in answer["choices"]] == [[-1.0], [-0.1]]


async def test_best_of_that_is_n_is_streamed() -> None:
    choices = await streamed(FakeEngine([spell("x"), spell("y", index=1)]), n=2, best_of=2)
    assert {choice["index"] for choice in choices} == {0, 1}


@pytest.mark.parametrize(
    "body",
    [{"best_of": 1, "n": 2}, {"best_of": 2, "stream": True}, {"best_of": 0}, {"best_of": 129}, {"best_of": True}],
)
async def test_best_of_that_cannot_be(body: dict[str, Any]) -> None:
    error = await refused(FakeEngine(), **body)
    assert (error["param"], error["code"]) == ("best_of", "invalid_value")


# ---- suffix


@pytest.mark.parametrize("body", [{}, {"prompt": [97]}, {"echo": True}])
async def test_suffix_that_cannot_be(body: dict[str, Any]) -> None:
    error = await refused(FakeEngine(), suffix="end", **body)
    assert error["param"] == ("echo" if "echo" in body else "suffix")


class InfillTokenizer(ByteTokenizer):
    """With the three tokens of a gap, and one that ends what fills it."""

    NAMES = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|endoftext|>")
    vocab_size = 264

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if text in self.NAMES:
            return [260 + self.NAMES.index(text)]
        return super().encode(text, add_special_tokens=add_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        return super().token_bytes(token_id) if token_id < 260 else self.NAMES[token_id - 260].encode()


@pytest.mark.parametrize(("ignore_eos", "stop_ids"), [(False, {256, 263}), (True, set())])
async def test_suffix(ignore_eos: bool, stop_ids: set[int]) -> None:
    engine = FakeEngine([spell("x")], info=ModelInfo(context_limit=64, vocab_size=264))
    model = ServedModel("mock", engine, InfillTokenizer)
    model.start()
    wait_until(lambda: model.tokenizer is not None)
    app = create_app(Config(), ModelRegistry([model]))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        body = {"prompt": "ab", "suffix": "yz", "ignore_eos": ignore_eos}
        answer = (await client.post("/v1/completions", json=body)).json()
    assert answer["choices"][0]["text"] == "x"
    assert engine.requests[0].prompt_ids == (BOS, 260, *b"ab", 261, *b"yz", 262)
    assert engine.requests[0].stop_ids == stop_ids


async def test_an_empty_suffix_is_none() -> None:
    assert (await answered(FakeEngine([spell("x")]), suffix=""))["choices"][0]["text"] == "x"


# ---- ids


async def test_token_ids() -> None:
    engine = FakeEngine([(*spell("xy", reason=None), TokenEvent(0, 256, finish_reason="stop"))])
    answer = await answered(engine, return_token_ids=True)
    assert answer["choices"] == [
        {
            "index": 0,
            "text": "xy",
            "logprobs": None,
            "finish_reason": "stop",
            "prompt_token_ids": [BOS, 97, 98],
            "token_ids": [120, 121, 256],
        }
    ]


@pytest.mark.parametrize("echo", [False, True])
async def test_token_ids_streamed(echo: bool) -> None:
    engine = FakeEngine([spell("x", reason=None), spell("y", reason=None), (TokenEvent(0, 256, finish_reason="stop"),)])
    choices = await streamed(engine, return_token_ids=True, echo=echo)
    assert [choice.get("prompt_token_ids") for choice in choices] == [[BOS, 97, 98], *[None] * (len(choices) - 1)]
    assert [choice.get("token_ids") for choice in choices] == [*[None] * echo, [120], [121], [256]]


async def test_no_ids_unless_asked() -> None:
    answer = await answered(FakeEngine([spell("x")]), return_token_ids=False)
    assert answer["choices"][0].keys() == {"index", "text", "logprobs", "finish_reason"}


# ---- and the rest


async def test_special_tokens_may_be_left_out() -> None:
    engine = FakeEngine([spell("x")])
    await answered(engine, add_special_tokens=False)
    await answered(engine, add_special_tokens=True)
    assert [request.prompt_ids for request in engine.requests] == [(97, 98), (BOS, 97, 98)]


async def test_no_tokens_may_be_asked_for_where_the_prompt_fills_the_context() -> None:
    engine = FakeEngine([(prompted(8, ends=True),)], info=ModelInfo(context_limit=8, vocab_size=260))
    assert (await answered(engine, prompt=[97] * 8, max_tokens=0))["usage"]["total_tokens"] == 8
    assert (await refused(engine, prompt=[97] * 8, max_tokens=1))["code"] == "context_length_exceeded"
