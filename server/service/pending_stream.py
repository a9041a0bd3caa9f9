"""A job's output before admission, for a client that receives progress while its model loads.

Independent of HTTP and of dialects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from math import inf
from typing import Any

from mlx_backend.api.interface import LoadProgress, PrefillProgress
from server.service.generation import OutputStream
from server.service.registry import ServedModel
from server.text.events import OutputEvent


class PendingStream:
    """A running `generation.open`, which continues without a waiter. Close it, or await it to its end."""

    def __init__(
        self,
        opening: Coroutine[Any, Any, OutputStream],
        model: ServedModel,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """`on_close`: called after the stream's own close."""
        self._on_close = on_close
        self._task = asyncio.create_task(opening)
        self._model = model

    async def wait(self, most_s: float) -> OutputStream | None:
        """Return the stream; None if the model is still loading after `most_s`. Raises the errors of opening."""
        try:
            while not self._task.done():
                await asyncio.wait({self._task}, timeout=None if most_s == inf else most_s)
                if not self._task.done() and self._model.state != "loaded":
                    return None
        except asyncio.CancelledError:
            await self.aclose()
            raise
        return self._task.result()

    @property
    def stream(self) -> OutputStream | None:
        """Stream, once its job is admitted."""
        return self._task.result() if self._has_stream else None

    def result(self) -> OutputStream:
        """Return the stream; valid after the first event."""
        return self._task.result()

    @property
    def progress(self) -> PrefillProgress | LoadProgress:
        return self._task.result().progress if self._has_stream else self._model.health().load

    @property
    def _has_stream(self) -> bool:
        return self._task.done() and not self._task.cancelled() and self._task.exception() is None

    def __aiter__(self) -> PendingStream:
        return self

    async def __anext__(self) -> list[OutputEvent]:
        """Return the next events. Raises APIError and EngineError, also those of opening."""
        return await anext(await self._task)

    async def aclose(self) -> None:
        """Idempotent."""
        self._task.cancel()
        await asyncio.wait({self._task})
        if self._has_stream:
            await self._task.result().aclose()
        if self._on_close is not None:
            self._on_close()
