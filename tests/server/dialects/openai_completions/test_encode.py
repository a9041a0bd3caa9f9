"""Chunks of a text completion, and that the JSON answer is their fold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from openai.types import Completion

from server.dialects.openai_completions.encode import Shown, build_encoder, build_fold
from server.text.events import Finished, OutputEvent, TextDelta, TokenText, Usage
from tests.server.dialects.streams import HEAD, encode_all, folded, jobs, token

SHOWN = Shown(logprobs=True)


def test_chunks() -> None:
    batches: list[list[OutputEvent]] = [
        [TextDelta(0, 'a"\n'), TextDelta(1, "é")],
        [Finished(1, "stop", 2), Finished(0, "length", 1), Usage(5, 2, 3)],
    ]
    chunks = encode_all(build_encoder(SHOWN, HEAD, True), batches)
    head = {"id": "id-1", "object": "text_completion", "created": 1700000000, "model": "mock"}
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "text": 'a"\n', "logprobs": None, "finish_reason": None}],
        [{"index": 1, "text": "é", "logprobs": None, "finish_reason": None}],
        [{"index": 1, "text": "", "logprobs": None, "finish_reason": "stop"}],
        [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}],
        [],
    ]
    assert all(head.items() <= chunk.items() for chunk in chunks)
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 4
    assert chunks[-1]["usage"]["total_tokens"] == 8
    for chunk in chunks[2:]:  # the SDK's type has no null for the reason, which OpenAI's own chunks have
        Completion.model_validate(chunk)


def test_no_usage_unless_asked() -> None:
    chunks = encode_all(build_encoder(SHOWN, HEAD, False), [[Finished(0, "stop", 1), Usage(1, 0, 1)]])
    assert len(chunks) == 1
    assert "usage" not in chunks[0]


def concatenate(chunks: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for piece in chunk["choices"]:
            choice = choices.setdefault(piece["index"], {"text": "", "logprobs": None, "finish_reason": None})
            choice["text"] += piece["text"]
            choice["finish_reason"] = piece["finish_reason"] or choice["finish_reason"]
            for name, values in (piece["logprobs"] or {}).items():
                choice["logprobs"] = choice["logprobs"] or {}
                choice["logprobs"][name] = (choice["logprobs"].get(name) or []) + (values or [])
    return choices


@given(jobs())
def test_the_answer_is_the_fold_of_the_stream(batches: list[list[OutputEvent]]) -> None:
    chunks = encode_all(build_encoder(SHOWN, HEAD, True), batches)
    answer = folded(build_fold(SHOWN, HEAD), batches)
    Completion.model_validate(answer)
    expected = concatenate(chunks)
    assert [choice["index"] for choice in answer["choices"]] == sorted(expected)
    for choice in answer["choices"]:
        whole = expected[choice.pop("index")]
        if whole["logprobs"]:
            whole["logprobs"]["top_logprobs"] = whole["logprobs"]["top_logprobs"] or None
        assert choice == whole
    assert answer["usage"] == chunks[-1]["usage"]


def logprobs_of(*deltas: list[TokenText]) -> list[Any]:
    """In the chunks of a stream."""
    batches: list[list[OutputEvent]] = [[TextDelta(0, "x", tuple(tokens))] for tokens in deltas]
    chunks = encode_all(build_encoder(SHOWN, HEAD, False), [*batches, [Usage(1, 0, 1)]])
    return [chunk["choices"][0]["logprobs"] for chunk in chunks]


def test_logprobs() -> None:
    first, second = logprobs_of(
        [token("a", -0.5, token("b", -0.25), token("a", -0.5))],
        [token("cd", -1.0, token("b", -0.25)), token("e", float("-inf"), token("b", -0.25))],
    )
    assert first == {
        "tokens": ["a"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"b": -0.25, "a": -0.5}],
        "text_offset": [0],
    }
    assert second["text_offset"] == [1, 3]
    # the chosen token is among them, likely or not
    assert second["top_logprobs"] == [{"b": -0.25, "cd": -1.0}, {"b": -0.25, "e": -9999.0}]


def test_no_top_logprobs_when_none_were_asked_for() -> None:
    (encoded,) = logprobs_of([token("a")])
    assert encoded["top_logprobs"] is None


def test_parts_of_a_character_have_names_and_one_place() -> None:
    parts = [TokenText(i, "\ufffd", bytes([byte]), -1.0) for i, byte in enumerate("é".encode())]
    (encoded,) = logprobs_of([*parts, token("x")])
    assert encoded["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "x"]
    assert encoded["text_offset"] == [0, 0, 1]


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_a_choice_without_text(reason: Any) -> None:
    answer = folded(build_fold(SHOWN, HEAD), [[Finished(0, reason, 1), Usage(1, 0, 1)]])
    assert answer["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": reason}]
