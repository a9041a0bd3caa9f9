"""The application: dialects, error answers and the request envelope around one registry. Nothing global."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI

from server import __version__, error_answers, sse
from server.config import Config, CurrentConfig
from server.dialects import DIALECTS
from server.dialects.dialect import Dialect, collect_errors
from server.dialects.parts import ServerParts
from server.errors import ErrorCounts
from server.lifecycle import Admission, Lifecycle
from server.middleware import RequestEnvelope
from server.openapi import PublishedAPI
from server.power import PowerMeter, find_command
from server.recent_errors import RecentErrors
from server.security.gate import Gate
from server.service.live import RecentActivity
from server.service.registry import ModelRegistry


class Application(PublishedAPI):
    """The ASGI application: the routes of every dialect, and the layers around them."""

    def __init__(self, parts: ServerParts, dialects: Sequence[Dialect]) -> None:
        super().__init__(title="Pippin", version=__version__, lifespan=self._live, docs_url=None, redoc_url=None)
        self.parts = parts
        self.error_bodies = collect_errors(dialects)
        for dialect in dialects:
            # Not by `include_router`: it would build every route once more, within the first requests.
            self.router.routes.extend(dialect.build_router(parts).routes)
        error_answers.install(self, self.error_bodies)
        # Outside of the framework's own layers, so that nothing stands between the envelope and the server.
        self.admission = Admission(self.build_middleware_stack(), parts.lifecycle, self.error_bodies)
        unlabelled = [prefix for dialect in dialects if dialect.takes_unlabelled for prefix in dialect.prefixes]
        self.gate = Gate(self.admission, parts.config, self.error_bodies, takes_unlabelled=unlabelled)
        self.envelope = RequestEnvelope(
            self.gate,
            self.error_bodies,
            max_body_bytes=parts.config.security.max_body_bytes,
            error_counts=parts.error_counts,
            recent_errors=parts.recent_errors,
        )
        self.middleware_stack = self.envelope

    @asynccontextmanager
    async def _live(self, _: FastAPI) -> AsyncIterator[None]:
        """Start the registry, which loads in the background, and what measures; close them at the end."""
        sse.let_streams_finish()
        self.parts.registry.start()
        self.parts.power.start()
        running = [asyncio.create_task(self.parts.activity.run()), asyncio.create_task(self.gate.watch_keys())]
        try:
            yield
        finally:
            for task in running:
                task.cancel()
            self.parts.power.close()
            await self.parts.registry.close()


def create_app(
    config: Config,
    registry: ModelRegistry,
    lifecycle: Lifecycle | None = None,
    *,
    origins: Mapping[str, str] | None = None,
    dialects: Sequence[Dialect] = DIALECTS,
) -> Application:
    """The ASGI application. Its lifespan starts the registry, which loads in the background, and closes it.

    `origins`: where each setting came from, by dotted key, for whoever asks.
    """
    return Application(
        ServerParts(
            settings=CurrentConfig(config),
            origins=origins or {},
            registry=registry,
            lifecycle=lifecycle or Lifecycle(),
            error_counts=ErrorCounts(),
            recent_errors=RecentErrors(),
            activity=RecentActivity(registry),
            power=PowerMeter(find_command()),
        ),
        dialects,
    )
