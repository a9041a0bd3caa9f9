"""The application: dialects, error answers and the request envelope around one registry. No globals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

from server import __version__, error_answers, sse
from server.batch_parts import most_upload_bytes, open_batches
from server.batches.run import Send
from server.config import Config, CurrentConfig
from server.dialects import DIALECTS
from server.dialects.dialect import Dialect, collect_errors
from server.dialects.parts import ServerParts
from server.errors import ErrorCounts
from server.in_process import InProcess
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
            # Not `include_router`, which would build every route again during the first requests.
            self.router.routes.extend(dialect.build_router(parts).routes)
        error_answers.install(self, self.error_bodies)
        # Outside the framework's own layers, so that nothing is between the envelope and the server.
        self.admission = Admission(self.build_middleware_stack(), parts.lifecycle, self.error_bodies)
        unlabelled = [prefix for dialect in dialects if dialect.takes_unlabelled for prefix in dialect.prefixes]
        self.file_bytes = {
            path: most_upload_bytes(parts.config) for dialect in dialects for path in dialect.takes_files
        }
        """Size limits of bodies at upload paths."""
        self.gate = Gate(
            self.admission, parts.config, self.error_bodies, takes_unlabelled=unlabelled, takes_files=self.file_bytes
        )
        self.envelope = RequestEnvelope(
            self.gate,
            self.error_bodies,
            max_body_bytes=parts.config.security.max_body_bytes,
            error_counts=parts.error_counts,
            recent_errors=parts.recent_errors,
            file_bytes=self.file_bytes,
        )
        self.middleware_stack = self.envelope

    @asynccontextmanager
    async def _live(self, _: FastAPI) -> AsyncIterator[None]:
        """Start the registry, which loads in the background, and the meters; close them at the end."""
        sse.let_streams_finish()
        parts = self.parts
        parts.registry.start()
        parts.power.start()
        running = [asyncio.create_task(parts.activity.run()), asyncio.create_task(self.gate.watch_keys())]
        if parts.batches is not None:
            running.append(asyncio.create_task(parts.batches.run(self._sender_of)))
        try:
            yield
        finally:
            for task in running:
                task.cancel()
            await asyncio.wait(running)
            parts.power.close()
            await parts.registry.close()

    def _sender_of(self, owner: str) -> Send:
        """Return the function that sends the requests of a batch, as the key `owner`."""
        tenant = partial(self.gate.tenant_named, owner)
        return InProcess(self.admission, self.error_bodies, lambda: self.parts.config.security, tenant).send


def create_app(
    config: Config,
    registry: ModelRegistry,
    lifecycle: Lifecycle | None = None,
    *,
    origins: Mapping[str, str] | None = None,
    dialects: Sequence[Dialect] = DIALECTS,
) -> Application:
    """Return the ASGI application. Its lifespan starts the registry, which loads in the background, and closes it.

    Raises KeysError, and OSError if the folder of batches cannot be used.
    `origins`: source of each setting, by dotted key, for reports.
    """
    settings = CurrentConfig(config)
    return Application(
        ServerParts(
            settings=settings,
            origins=origins or {},
            registry=registry,
            lifecycle=lifecycle or Lifecycle(),
            error_counts=ErrorCounts(),
            recent_errors=RecentErrors(),
            activity=RecentActivity(registry),
            power=PowerMeter(find_command()),
            batches=open_batches(settings),
        ),
        dialects,
    )
