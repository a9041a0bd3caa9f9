"""A job's output before the job is admitted: for a client that should hear something while its model loads.

Knows nothing of HTTP or of any dialect.
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
    """`generation.open` on its way, which goes on when nobody waits for it. To be closed, or awaited to its end."""

    def __init__(
        self,
        opening: Coroutine[Any, Any, OutputStream],
        model: ServedModel,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """`on_close`: called behind the stream's own close."""
        self._on_close = on_close
        self._task = asyncio.create_task(opening)
        self._model = model

    async def wait(self, most_s: float) -> OutputStream | None:
        """The stream; None where the model is loading still after `most_s`. Raises what opening raises."""
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
        """The stream, as soon as its job is admitted."""
        return self._task.result() if self._has_stream else None

    def result(self) -> OutputStream:
        """The stream, once there has been an event."""
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
        """Raises APIError and EngineError, those of opening among them."""
        return await anext(await self._task)

    async def aclose(self) -> None:
        """Idempotent."""
        self._task.cancel()
        await asyncio.wait({self._task})
        if self._has_stream:
            await self._task.result().aclose()
        if self._on_close is not None:
            self._on_close()
