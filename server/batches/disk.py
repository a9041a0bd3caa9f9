"""Threads for disk access: few, and separate from the server's threads, which a slow disk does not delay."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_threads = ThreadPoolExecutor(4, thread_name_prefix="batches")


async def on_disk(call: Callable[[], T]) -> T:
    """Return the result of a call on such a thread. A cancelled caller first waits for the call to end."""
    context = contextvars.copy_context()  # carries the log's request id
    calling = asyncio.get_running_loop().run_in_executor(_threads, lambda: context.run(call))
    try:
        return await asyncio.shield(calling)
    except asyncio.CancelledError:
        await asyncio.gather(calling, return_exceptions=True)
        raise
