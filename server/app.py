"""The application: dialects, error answers and the request envelope around one registry. Nothing global."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI

from server import __version__, error_answers, sse
from server.config import Config
from server.dialects import DIALECTS
from server.errors import ErrorCounts
from server.lifecycle import Admission, Lifecycle
from server.middleware import RequestEnvelope
from server.openapi import PublishedAPI
from server.power import PowerMeter, find_command
from server.recent_errors import RecentErrors
from server.security.gate import Gate
from server.service.live import Pulse
from server.service.registry import ModelRegistry


def create_app(
    config: Config,
    registry: ModelRegistry,
    lifecycle: Lifecycle | None = None,
    *,
    origins: Mapping[str, str] | None = None,
) -> FastAPI:
    """The ASGI application. Its lifespan starts the registry, which loads in the background, and closes it.

    `origins`: where each setting came from, by dotted key, for whoever asks.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sse.let_streams_finish()
        registry.start()
        app.state.power.start()
        running = [asyncio.create_task(app.state.pulse.run()), asyncio.create_task(app.state.gate.watch_keys())]
        try:
            yield
        finally:
            for task in running:
                task.cancel()
            app.state.power.close()
            await registry.close()

    app = PublishedAPI(title="Pippin", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.config = config
    app.state.origins = origins or {}
    app.state.registry = registry
    app.state.lifecycle = lifecycle or Lifecycle()
    app.state.error_counts = ErrorCounts()
    app.state.recent_errors = RecentErrors()
    app.state.pulse = Pulse(registry)
    app.state.power = PowerMeter(find_command())
    for router in DIALECTS:
        app.include_router(router)
    error_answers.install(app)
    # Outside of the framework's own layers, so that nothing stands between the envelope and the server.
    app.state.gate = Gate(Admission(app.build_middleware_stack(), app.state.lifecycle), config)
    app.state.envelope = RequestEnvelope(
        app.state.gate,
        max_body_bytes=config.security.max_body_bytes,
        error_counts=app.state.error_counts,
        recent_errors=app.state.recent_errors,
    )
    app.middleware_stack = app.state.envelope
    return app
