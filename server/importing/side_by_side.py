"""Process pieces on several threads, with results in order. Few pieces are in memory at once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

NUM_THREADS = min(8, os.cpu_count() or 1)


def in_order(work: Callable[[A], B], pieces: Iterable[A], num_threads: int = NUM_THREADS) -> Iterator[B]:
    """Yield the results of `work` in order, each when it and all before it are done. Raises what `work` raises."""
    with ThreadPoolExecutor(num_threads, thread_name_prefix="import") as pool:
        waiting: deque[Future[B]] = deque()
        try:
            for piece in pieces:
                waiting.append(pool.submit(work, piece))
                if len(waiting) > num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
