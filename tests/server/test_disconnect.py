"""Work that ends with its client."""

from __future__ import annotations

import asyncio

import pytest

from server.disconnect import ClientGone, while_connected


async def never() -> dict[str, object]:
    await asyncio.Event().wait()
    return {}


async def test_result_of_the_work() -> None:
    async def work() -> int:
        return 7

    assert await while_connected(never, work()) == 7


async def test_error_of_the_work() -> None:
    async def work() -> int:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await while_connected(never, work())


async def test_the_work_is_cleaned_up_when_the_client_leaves() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    async def leave() -> dict[str, object]:
        await began.wait()
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGone):
        await while_connected(leave, work())
    assert ended.is_set()


async def test_other_messages_are_no_disconnect() -> None:
    messages = [{"type": "http.request"}, {"type": "http.request"}]
    finish = asyncio.Event()

    async def receive() -> dict[str, object]:
        if messages:
            return dict(messages.pop())
        finish.set()
        return await never()

    async def work() -> str:
        await finish.wait()
        return "done"

    assert await while_connected(receive, work()) == "done"


async def test_cancelling_the_caller_cancels_the_work() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(while_connected(never, work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
