"""One process that serves: find the model, bind the port, load in the background, answer until told to stop.

Owns the process: its socket, signals and exit code. 0 after a signal, 1 when the model cannot be loaded, the
port is taken or the engine died.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import uvicorn

from mlx_backend.checkpoint import find_model, open_checkpoint
from mlx_backend.errors import ModelLoadError
from mlx_backend.factory import create_engine
from server import pocket
from server.app import create_app
from server.config import Config, engine_config
from server.load_report import report_loading
from server.logs import configure_logging
from server.service.registry import ModelRegistry, ServedModel
from server.text.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer

logger = logging.getLogger("pippin.run")

_LINGER_S = 1.0
"""A dead engine's server answers so long before it ends: its streams get their error, a probe sees the 503."""
_BACKLOG = 2048
_MAX_OPEN_FILES = 10_240
"""macOS takes no more (OPEN_MAX), whatever the hard limit says."""


def serve(config: Config) -> int:
    """Serve until a signal or the engine's death; the exit code of the process."""
    configure_logging(config.log_level)
    # It writes past the log, of models it would not recognise; what matters of a model is said here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        model = build_model(config)
        listener = _bind(config.host, config.port)
    except (ModelLoadError, OSError) as error:
        return _give_up(error)
    _allow_many_connections()
    server = uvicorn.Server(_uvicorn_config(config, model))
    model.on_death(lambda: _stop_soon(server, model))
    # uvicorn restores and raises again what it caught; here that is nothing, and the exit code is ours.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ignore)
    host, port = listener.getsockname()[:2]
    report_loading(model, f"http://{host}:{port}", _settle)
    server.run(sockets=[listener])
    return 0 if model.failure is None else _give_up(model.failure)


def build_model(config: Config) -> ServedModel:
    """The model of the configuration, not started. Raises ModelLoadError."""
    if config.backend == "mock":
        return ServedModel("mock", create_engine(engine_config(config, "mock")), ByteTokenizer)
    name, path = _find(config.model)
    open_checkpoint(path)  # before anything heavy is imported: a broken folder is told at once

    def tokenizer() -> Tokenizer:
        return load_tokenizer(path)

    return ServedModel(name, create_engine(engine_config(config, str(path))), tokenizer)


def _find(model: str | None) -> tuple[str, Path]:
    """What the model is called over HTTP, and its folder."""
    if pocket.is_meant(model):
        return pocket.MODEL_ID, pocket.folder()
    name = model or ""
    path = find_model(name)
    is_folder = Path(name).expanduser().is_dir()
    return path.resolve().name if is_folder else name, path


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


def _uvicorn_config(config: Config, model: ServedModel) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(config, ModelRegistry([model])),
        log_config=None,
        access_log=False,
        server_header=False,
        loop="uvloop",
        http="httptools",
        ws="none",
        backlog=_BACKLOG,
        timeout_graceful_shutdown=max(1, round(config.stream.drain_s)),
    )


def _stop_soon(server: uvicorn.Server, model: ServedModel) -> None:
    """Called on a thread of the model's when it has died."""
    delay_s = 0.0 if isinstance(model.failure, ModelLoadError) else _LINGER_S
    timer = threading.Timer(delay_s, setattr, (server, "should_exit", True))
    timer.daemon = True
    timer.start()


def _allow_many_connections() -> None:
    """As many open files as may be: a connection is one. mlx-lm sets 2,048 of 4,096 when it is imported."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _MAX_OPEN_FILES)), hard))


def _settle() -> None:
    """What is loaded stays: keep the garbage collector from walking through it, which holds up every stream."""
    gc.collect()
    gc.freeze()


def _give_up(error: BaseException) -> int:
    print(f"pippin: {error}", file=sys.stderr)
    return 1


def _ignore(number: int, frame: Any) -> None:
    """A signal that has been acted on."""
