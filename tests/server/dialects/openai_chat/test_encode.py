"""Chunks of a chat completion, and that the JSON answer is their fold."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from server.dialects.openai_chat.encode import build_encoder, encode_logprobs, fold
from server.text.events import Finished, OutputEvent, TextDelta, TokenText, Usage
from tests.server.dialects.streams import HEAD, encode_all, jobs, token


def test_chunks() -> None:
    batches: list[list[OutputEvent]] = [
        [TextDelta(0, 'a"\n')],
        [TextDelta(0, "é"), Finished(0, "length", 2), Usage(5, 2, 2)],
    ]
    chunks = encode_all(build_encoder(HEAD, True), batches)
    head = {"id": "id-1", "object": "chat.completion.chunk", "created": 1700000000, "model": "mock"}
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {"content": 'a"\n'}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "é"}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}],
        [],
    ]
    assert all(head.items() <= chunk.items() for chunk in chunks)
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 4
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)


def test_no_usage_unless_asked() -> None:
    chunks = encode_all(build_encoder(HEAD, False), [[Finished(0, "stop", 1), Usage(1, 0, 1)]])
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [{"role": "assistant", "content": ""}, {}]
    assert all("usage" not in chunk for chunk in chunks)


def concatenate(chunks: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for piece in chunk["choices"]:
            index, delta = piece["index"], piece["delta"]
            assert ("role" in delta) == (index not in choices)
            choice = choices.setdefault(index, {"role": "assistant", "content": "", "logprobs": [], "reason": None})
            choice["content"] += delta.get("content", "")
            choice["reason"] = piece["finish_reason"] or choice["reason"]
            choice["logprobs"] += (piece["logprobs"] or {"content": []})["content"]
    return choices


@given(jobs())
def test_the_answer_is_the_fold_of_the_stream(batches: list[list[OutputEvent]]) -> None:
    chunks = encode_all(build_encoder(HEAD, True), batches)
    answer = fold(HEAD, [event for batch in batches for event in batch])
    ChatCompletion.model_validate(answer)
    folded = {
        choice["index"]: {
            "role": choice["message"]["role"],
            "content": choice["message"]["content"],
            "logprobs": (choice["logprobs"] or {"content": []})["content"],
            "reason": choice["finish_reason"],
        }
        for choice in answer["choices"]
    }
    assert folded == concatenate(chunks)
    assert list(folded) == sorted(folded)
    assert answer["usage"] == chunks[-1]["usage"]


def test_logprobs() -> None:
    part = TokenText(9, "\ufffd", b"\xc3", float("-inf"))
    assert encode_logprobs([token("a", -0.5, token("b", -0.25), part)]) == {
        "content": [
            {
                "token": "a",
                "logprob": -0.5,
                "bytes": [97],
                "top_logprobs": [
                    {"token": "b", "logprob": -0.25, "bytes": [98]},
                    {"token": "\ufffd", "logprob": -9999.0, "bytes": [0xC3]},
                ],
            }
        ],
        "refusal": None,
    }
