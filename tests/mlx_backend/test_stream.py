"""EventStream: what a slow reader finds."""

from __future__ import annotations

import asyncio

from mlx_backend.interface import TokenEvent
from mlx_backend.sequence import build_prefills
from mlx_backend.stream import EventStream
from tests.engine_client import request


async def test_a_backlog_comes_in_parts_and_the_loop_is_free_between_them() -> None:
    stream = EventStream(build_prefills([request((1, 2), n=3)]), lambda _: None)
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
