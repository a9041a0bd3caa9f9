"""JSON answers in pieces: bounded, and made in slices."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.dialects import fold as fold_module
from server.dialects.fold import joined, listed
from server.dialects.openai_chat.encode import build_fold
from server.errors import InvalidRequest
from server.text.events import TextDelta
from tests.server.dialects.streams import HEAD, token


@given(st.lists(st.integers() | st.text(), max_size=5))
def test_a_list(values: list[int | str]) -> None:
    assert json.loads("".join(listed(map(json.dumps, values)))) == values


@pytest.mark.parametrize("with_logprobs", [False, True])
def test_an_answer_that_becomes_too_large_is_given_up(monkeypatch: pytest.MonkeyPatch, with_logprobs: bool) -> None:
    monkeypatch.setattr(fold_module, "MOST_CHARS", 1000)
    fold = build_fold(HEAD)
    tokens = tuple(token("x") for _ in range(9 if with_logprobs else 0))
    fold.add([TextDelta(0, "x", tokens)])
    with pytest.raises(InvalidRequest) as caught:
        for _ in range(10):
            fold.add([TextDelta(0, "x" * 101, tokens)])
    assert (caught.value.code, caught.value.param) == ("answer_too_large", "stream")


async def test_others_have_the_loop_while_pieces_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_module, "_SLICE_S", 0.0)
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(time.perf_counter())
            await asyncio.sleep(0)

    def pieces() -> Iterator[str]:
        for number in range(100):
            yield f"{number},"

    task = asyncio.create_task(tick())
    assert await joined(pieces()) == b"".join(b"%d," % number for number in range(100))
    task.cancel()
    assert len(ticks) >= 99
