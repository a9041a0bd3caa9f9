"""Threads for what waits for a disk: few, and apart from those of the server, which a slow disk does not hold up."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_threads = ThreadPoolExecutor(4, thread_name_prefix="batches")


async def on_disk(call: Callable[[], T]) -> T:
    """Return what a call returns on such a thread. A caller that is cancelled waits for its end first."""
    context = contextvars.copy_context()  # the log's request among it
    calling = asyncio.get_running_loop().run_in_executor(_threads, lambda: context.run(call))
    try:
        return await asyncio.shield(calling)
    except asyncio.CancelledError:
        await asyncio.gather(calling, return_exceptions=True)
        raise
