"""EventStream: what a slow reader finds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from mlx_backend.api.interface import TokenEvent
from mlx_backend.core.sequence import TokenSequence, build_groups
from mlx_backend.engine.stream import EventStream
from tests.engine_client import request


async def test_a_backlog_comes_in_parts_and_the_loop_is_free_between_them() -> None:
    stream = EventStream(build_groups([request((1, 2), n=3)]), lambda *_: None)
    for number in range(1000):
        for index in range(3):
            stream.deliver(TokenEvent(index, number, None, "length" if number == 999 else None))
    num_turns = 0

    async def others() -> None:
        nonlocal num_turns
        while True:
            num_turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    batches = [batch async for batch in stream]
    task.cancel()
    tokens = [event for batch in batches for event in batch if isinstance(event, TokenEvent)]
    assert [(event.token_id, event.index) for event in tokens] == [
        (i, index) for i in range(1000) for index in range(3)
    ]
    assert max(map(len, batches)) <= 64
    assert num_turns >= len(batches) - 2


def stream_of(num_sequences: int) -> tuple[EventStream, list[TokenSequence]]:
    aborted: list[TokenSequence] = []

    def close(sequences: Iterable[TokenSequence], how: str) -> None:
        assert how == "aborted"
        aborted.extend(sequences)

    return EventStream(build_groups([request((1, 2), n=num_sequences)]), close), aborted


def token(index: int, token_id: int, *, is_last: bool = False) -> TokenEvent:
    return TokenEvent(index, token_id, None, "length" if is_last else None)


async def test_what_had_come_of_a_choice_goes_with_it() -> None:
    stream, aborted = stream_of(2)
    for token_id in (5, 6):
        for index in (0, 1):
            stream.deliver(token(index, token_id))
    stream.abort(0)
    stream.deliver(token(0, 7))  # was on its way
    stream.deliver(token(1, 7, is_last=True))
    left = [event async for batch in stream for event in batch]
    assert left == [token(1, 5), token(1, 6), token(1, 7, is_last=True)]
    assert [sequence.index for sequence in aborted] == [0]
    stream.abort(0)
    assert len(aborted) == 1


async def test_what_had_come_before_a_failure_is_given_out_first() -> None:
    stream, _ = stream_of(1)
    stream.deliver(token(0, 5))
    stream.deliver(RuntimeError("gone"))
    stream.deliver(RuntimeError("again"))
    found: list[object] = []
    with pytest.raises(RuntimeError, match="gone"):
        async for batch in stream:
            found += batch
    assert found == [token(0, 5)]


async def test_closing_aborts_what_is_open_alone() -> None:
    stream, aborted = stream_of(3)
    stream.deliver(token(1, 5, is_last=True))
    await anext(stream)
    await stream.aclose()
    assert [sequence.index for sequence in aborted] == [0, 2]
    await stream.aclose()
    assert len(aborted) == 2
    assert [batch async for batch in stream] == []
