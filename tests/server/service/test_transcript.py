"""What is kept of a job's tokens for its answer."""

from __future__ import annotations

import math

from mlx_backend.api.interface import PromptEvent, TokenEvent, TokenLogprobs
from server.service.job import TextPrompt, TokenPrompt
from server.service.transcript import Transcript
from server.text.tokenizer import ByteTokenizer


def transcript(n: int = 1) -> Transcript:
    ids = [(257, 97), (98, 256, 99)]
    return Transcript(ByteTokenizer(), [TextPrompt("a"), TokenPrompt(ids[1])], ids, n)


def test_prompts_by_choice() -> None:
    kept = transcript(n=2)
    assert [kept.prompt_ids(index) for index in range(4)] == [(257, 97)] * 2 + [(98, 256, 99)] * 2
    assert [kept.prompt_text(kept.place(index)) for index in range(4)] == ["a", "a", "bc", "bc"]


def test_tokens_of_a_prompt() -> None:
    kept = transcript(n=2)
    kept.take(PromptEvent(2, (TokenLogprobs(-1.0, ((98, -0.5),)), TokenLogprobs(-2.0))))
    tokens, offsets = zip(*kept.prompt_tokens(kept.place(3)), strict=True)
    assert [token.text for token in tokens] == ["b", "<eos>", "c"]
    assert math.isnan(tokens[0].logprob)
    assert [token.logprob for token in tokens[1:]] == [-1.0, -2.0]
    assert [(top.text, top.logprob) for top in tokens[1].top] == [("b", -0.5)]
    assert offsets == (0, 1, 1)


def test_ids_are_given_once() -> None:
    kept = transcript()
    for token_id in (1, 2):
        kept.take(TokenEvent(1, token_id))
    assert kept.token_ids(1) == [1, 2]
    kept.take(TokenEvent(1, 3))
    assert [kept.token_ids(1), kept.token_ids(1), kept.token_ids(0)] == [[3], [], []]


def test_mean_logprob_counts_every_token() -> None:
    kept = transcript()
    assert kept.mean_logprob(0) == 0.0
    for logprob in (-1.0, -2.0, -6.0):
        kept.take(TokenEvent(0, 5, TokenLogprobs(logprob)))
    assert kept.mean_logprob(0) == -3.0
