"""One serving process: find the model, bind the port, load in the background, answer until stopped.

Owns the process: its socket and exit code. 0 after a signal, 1 if the model cannot be loaded, the port is taken, the
engine died or the end had to be forced; `lifecycle` handles the shutdown.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial

import uvicorn

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.factory import set_buffer_limits
from server.app import Application, create_app
from server.appliance.awake import find_awake
from server.config import Config
from server.lifecycle import DrainingServer, Lifecycle, owned_signals
from server.load_report import report_loading
from server.logs import configure_logging, flush_logs, is_structured
from server.models import build_models
from server.reload_parts import register_parts
from server.reloading import Reloading
from server.security.connection import bounded_protocol
from server.security.hosts import UnsafeSetup, check_setup
from server.security.keys import KeysError
from server.service.registry import ModelRegistry, ServedModel

logger = logging.getLogger("pippin.run")

_LINGER_S = 1.0
"""Time that the server of a dead engine still answers: its streams get their error, and a probe the 503."""
_BACKLOG = 2048
_OTHER_FILES = 256
_MAX_OPEN_FILES = 10_240
"""macOS allows no more (OPEN_MAX), whatever the hard limit."""


def serve(
    config: Config,
    reread: Callable[[], Config] | None = None,
    *,
    origins: Mapping[str, str] | None = None,
) -> int:
    """Serve until a signal or the engine's death; return the exit code of the process.

    `reread` is called on SIGHUP; `origins`: source of each setting.
    """
    try:
        configure_logging(config.log_level, config.log_format, with_prompts=config.log_prompts, file=config.log_file)
    except OSError as error:
        return _give_up(error)
    # It writes past the log, about models it does not recognise; the server logs what matters of a model.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        check_setup(config)
        if config.backend == "mlx":
            for limit in set_buffer_limits(config.memory, os.environ):
                logger.info("memory: MLX's command buffers: %s", limit)
        models = build_models(config)
        listener = _bind(config.host, config.port)
        _allow_many_connections()
        host, port = listener.getsockname()[:2]
        reporter = _Reporter(f"http://{host}:{port}")
        registry = ModelRegistry(models, reporter, load_wait_s=config.residency.load_wait_s)
        server, reloading = _build_server(config, registry, reread, origins)
    except (ModelLoadError, OSError, UnsafeSetup, KeysError) as error:
        return _give_up(error)
    required = [model for model in models if model.is_required]
    for model in required:
        model.on_death(partial(_stop_soon, server, model))
    listener.listen(_BACKLOG)  # before the log gives the address: early connections wait instead of being refused
    if not required:
        logger.info("serving %s on http://%s:%d: loaded when asked for", ", ".join(m.id for m in models), host, port)
    with owned_signals(server, reloading.reload):
        server.run(sockets=[listener])
    failure = next((model.failure for model in required if model.failure is not None), None)
    code = 0 if failure is None else _give_up(failure)
    if config.ranks.is_one_model_in_parts:
        flush_logs()
        os._exit(code)  # a computation that waits for a lost rank never ends, and the interpreter would wait for it
    return code


class _Reporter:
    """Reporter of loaded and unloaded models, to people and to the garbage collector."""

    def __init__(self, url: str) -> None:
        self._url = url

    def loading(self, model: ServedModel) -> None:
        report_loading(model, self._url, _settle)

    def unloaded(self, model: ServedModel) -> None:
        gc.unfreeze()  # frozen objects are never collected, including the unloaded model
        _settle()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return listener


def _build_server(
    config: Config,
    registry: ModelRegistry,
    reread: Callable[[], Config] | None,
    origins: Mapping[str, str] | None,
) -> tuple[DrainingServer, Reloading]:
    """Return the server, and its reload on SIGHUP. Raises KeysError."""
    lifecycle = Lifecycle()
    awake = find_awake(config.service.keep_awake)
    if awake is not None:
        lifecycle.watchers.append(awake.watch)
    app = create_app(config, registry, lifecycle, origins=origins)
    connections = bounded_protocol(config.security, _connection_limit(config), app.error_bodies, app.file_bytes)
    server = DrainingServer(
        _uvicorn_config(app, connections),
        lifecycle,
        drain_s=lambda: app.parts.config.stream.drain_s,
        cut=registry.close,
        has_wired=partial(_has_wired, registry),
    )
    reloading = Reloading(config, reread)
    register_parts(reloading, app.parts.settings, app.gate, app.envelope, connections)
    return server, reloading


def _has_wired(registry: ModelRegistry) -> bool:
    infos = [model.engine.model_info for model in registry.list()]
    return any(info is not None and info.memory is not None and info.memory.wired_bytes > 0 for info in infos)


def _uvicorn_config(app: Application, connections: type[asyncio.Protocol]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        loop="uvloop",
        http=connections,
        ws="none",
        backlog=_BACKLOG,
    )


def _stop_soon(server: DrainingServer, model: ServedModel) -> None:
    """Stop the server soon. Called on a thread of the model when it has died."""
    delay_s = 0.0 if isinstance(model.failure, ModelLoadError) else _LINGER_S
    timer = threading.Timer(delay_s, server.stop)
    timer.daemon = True
    timer.start()


def _allow_many_connections() -> None:
    """Raise the limit of open files: a connection is one. mlx-lm sets 2,048 of 4,096 when imported."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _MAX_OPEN_FILES)), hard))


def _connection_limit(config: Config) -> int:
    """Return the configured limit, reduced to the open files left after models, the disk and logs."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(config.security.max_connections, files - _OTHER_FILES))


def _settle() -> None:
    """Exempt loaded objects from garbage collection: walking through them delays every stream."""
    gc.collect()
    gc.freeze()


def _give_up(error: BaseException) -> int:
    if is_structured():
        logger.critical("%s", error)
    else:
        flush_logs()
        print(f"pippin: {error}", file=sys.stderr)
    return 1
