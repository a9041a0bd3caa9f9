"""Prompts to token ids: what is too long is refused by its beginning, or loses its oldest turns."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from server.errors import APIError
from server.service import encoding
from server.service.encoding import Encoded, encode_prompt, run_in_text_thread
from server.service.job import ChatPrompt, GenerationJob, InfillPrompt, Prompt, TextPrompt
from server.service.names import FieldNames
from server.text.tokenizer import ByteTokenizer

CONTEXT = 100


async def encode(prompt: Prompt, *, limit: int | None = None, max_tokens: int | None = None) -> Encoded:
    job = GenerationJob(
        request_id="1", model="", prompts=(prompt,), names=FieldNames(prompt="prompt"), max_tokens=max_tokens
    )
    return await encode_prompt(ByteTokenizer(), prompt, job, CONTEXT, limit, None)


def turns(*lengths: int) -> ChatPrompt:
    roles = ("user", "assistant")
    return ChatPrompt(tuple({"role": roles[i % 2], "content": "x" * length} for i, length in enumerate(lengths)))


@pytest.mark.parametrize("prompt", [TextPrompt("x" * 1_000_000), turns(1_000_000), turns(10, 10, 1_000_000)])
@pytest.mark.parametrize("limit", [None, 80])
async def test_what_is_much_too_long_is_told_with_what_was_found(prompt: Prompt, limit: int | None) -> None:
    with pytest.raises(APIError) as caught:
        await encode(prompt, limit=limit, max_tokens=7)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "context_length_exceeded", "prompt")
    assert "at least 20" in caught.value.message and "7 for the output" in caught.value.message


async def test_what_is_a_little_too_long_is_encoded_whole() -> None:
    """Whether it fits beside the answer is asked with all its tokens known."""
    assert len((await encode(TextPrompt("x" * 5000, add_special_tokens=False))).ids) == 5000


async def test_the_oldest_turns_go_however_long_they_are() -> None:
    encoded = await encode(turns(1_000_000, 500_000, 20), limit=80)
    assert len(encoded.ids) <= 80
    whole = len("user: ") + len("assistant: ") + len("user: ") + 1_500_020 + len("\n\n\nassistant:")
    assert encoded.num_truncated_tokens == whole - len(encoded.ids)


async def test_long_texts_leave_the_event_loop_and_are_few_together() -> None:
    running, most, names = [0], [0], set[str]()

    def work() -> None:
        names.add(threading.current_thread().name)
        running[0] += 1
        most[0] = max(most[0], running[0])
        threading.Event().wait(0.01)
        running[0] -= 1

    await asyncio.gather(*(run_in_text_thread(work) for _ in range(8)))
    assert most[0] <= 2
    assert all(name.startswith("text") for name in names)


@pytest.mark.parametrize(
    ("prompt", "is_long"),
    [
        (TextPrompt("x" * 20_001), True),
        (TextPrompt("x" * 20_000), False),
        (InfillPrompt("x" * 10_000, "y" * 10_001), True),
        (turns(20_001), True),
        (turns(20), False),
        (ChatPrompt(({"role": "user", "content": "x"},), tools=({"function": {"description": "x" * 20_001}},)), True),
    ],
)
async def test_which_texts_are_long(prompt: Prompt, is_long: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    async def count(work: Any, *arguments: Any) -> Encoded:
        asked.append(work)
        return Encoded((1,))

    monkeypatch.setattr(encoding, "run_in_text_thread", count)
    monkeypatch.setattr(encoding, "_encode_text", lambda *arguments: Encoded((1,)))
    await encode(prompt)
    assert bool(asked) is is_long
