"""Fixtures of HTTP tests: an application over an engine, in process or behind a real uvicorn."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import httpx
import uvicorn

from mlx_backend.api.interface import Engine, EngineConfig, HealthConfig, MockConfig
from mlx_backend.factory import create_engine
from server.app import create_app
from server.config import Config
from server.dialects import DIALECTS
from server.dialects.dialect import Dialect
from server.security.connection import bounded_protocol
from server.service.registry import ModelRegistry, ServedModel
from server.text.tokenizer import ByteTokenizer, Tokenizer

DEADLINE_S = 120.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when `condition` holds; fail if it does not within DEADLINE_S."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def build_registry(
    engine: Engine, *, id: str = "mock", is_started: bool = True, tokenizer: Callable[[], Tokenizer] = ByteTokenizer
) -> ModelRegistry:
    """Build a registry with one model over `engine`; its tokenizer is loaded, unless not started."""
    model = ServedModel(id, engine, tokenizer)
    if is_started:
        model.start()
        wait_until(lambda: model.tokenizer is not None)
    return ModelRegistry([model])


@asynccontextmanager
async def client_of(
    engine: Engine,
    config: Config | None = None,
    tokenizer: Callable[[], Tokenizer] = ByteTokenizer,
    *,
    dialects: Sequence[Dialect] = DIALECTS,
) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of an application in process."""
    registry = build_registry(engine, tokenizer=tokenizer)
    app = create_app(config or Config(), registry, dialects=dialects)
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            yield client
    finally:
        await registry.close()


def mock_engine(*, stall_s: float = 60.0, **pace: object) -> Engine:
    """Return the real engine over the mock runner, not started."""
    mock = MockConfig(**pace)  # type: ignore[arg-type]
    return create_engine(
        EngineConfig(model_path="mock", backend="mock", mock=mock, health=HealthConfig(stall_s=stall_s))
    )


class LiveServer:
    """A running server: its address, and its engine."""

    def __init__(self, engine: Engine, port: int) -> None:
        self.engine = engine
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def wait_until_idle(self) -> None:
        """Return when no sequence is left in the engine."""
        wait_until(self._is_idle)

    def _is_idle(self) -> bool:
        stats = self.engine.stats()
        return stats.num_waiting + stats.num_prefilling + stats.num_running == 0


@contextmanager
def serve(
    engine: Engine,
    config: Config | None = None,
    *,
    until_ready: bool = True,
    dialects: Sequence[Dialect] = DIALECTS,
) -> Iterator[LiveServer]:
    """Run a real uvicorn on loopback, in a thread."""
    registry = build_registry(engine, is_started=False)
    config = config or Config()
    app = create_app(config, registry, dialects=dialects)
    protocol = bounded_protocol(config.security, config.security.max_connections, app.error_bodies, app.file_bytes)
    server = uvicorn.Server(
        uvicorn.Config(
            app, port=0, http=protocol, ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=1
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        assert server.started
        port = server.servers[0].sockets[0].getsockname()[1]
        if until_ready:
            (model,) = registry.list()
            wait_until(lambda: model.health().status != "loading")
            assert model.health().status == "ok", model.failure
        yield LiveServer(engine, port)
    finally:
        server.should_exit = True
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
