"""`pippin batch`: answer the requests of a file, with a model in this process or a running server. Sets exit codes."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from server.config import Config, ConfigError

if TYPE_CHECKING:
    from server.batches.answers import Answer
    from server.batches.progress import Progress
    from server.batches.run import Send
    from server.service.registry import ServedModel

ParseServe = Callable[[Sequence[str]], Config]
"""The configuration of `pippin serve` with these arguments. Raises ConfigError."""

_POLL_S = 0.05
_LINE_BYTES = 1 << 16
"""Bytes of a line beside the body of its request."""
_URL_IN_FLIGHT = 16
_MORE_IN_FLIGHT = 4
"""Requests beyond those that decode: their prompts are ready when a place is free."""

Source = typer.Argument(..., metavar="IN.jsonl", help="Requests in OpenAI's batch format, one per line.")
Out = typer.Argument(..., metavar="OUT.jsonl", help="Answers, appended; an interrupted run resumes from them.")
ServeArguments = typer.Argument(
    None, metavar="[-- MODEL ARGUMENT...]", help="Arguments of `pippin serve`, without --url."
)
Url = typer.Option(
    None,
    "--url",
    metavar="URL",
    help="Server to send the requests to: Pippin, or another with OpenAI's API.",
    show_default=False,
)
Key = typer.Option(None, "--key", help="API key for --url, or @FILE with the key.", show_default=False)
InFlight = typer.Option(
    None,
    "--in-flight",
    min=1,
    max=1024,
    help="Concurrent requests. Default: all that the model decodes together; 16 with --url.",
)
GiveUp = typer.Option(
    3600.0, "--give-up", min=1, metavar="SECONDS", help="Stop when no line has been answered for this long."
)


def add_to(app: typer.Typer, parse: ParseServe) -> None:
    """Add the command to the command line."""

    @app.command()
    def batch(
        source: Path = Source,
        out: Path = Out,
        arguments: list[str] | None = ServeArguments,
        url: str | None = Url,
        key: str | None = Key,
        in_flight: int | None = InFlight,
        give_up: float = GiveUp,
    ) -> None:
        """Answer every line of a file once. After an interruption, the same command resumes."""
        if url is None:
            if key is not None:
                raise ConfigError("--key applies only with --url; without --url, the model runs in this process")
            config = parse(arguments or [])
            opening = _in_process(config)
            number = in_flight or config.scheduler.max_num_seqs + _MORE_IN_FLIGHT
            size = config.security.max_body_bytes + _LINE_BYTES
        else:
            if arguments:
                raise ConfigError(f"{arguments[0]!r} applies only to a model in this process; omit it, or omit --url")
            number, size = in_flight or _URL_IN_FLIGHT, 64 << 20
            opening = _over_http(url, key, number)
        raise typer.Exit(_run(source, out, opening, number, give_up, size))


def _run(
    source: Path, out: Path, opening: AbstractAsyncContextManager[Send], number: int, give_up_s: float, most_bytes: int
) -> int:
    """Return the exit code."""
    from mlx_backend.api.errors import ModelLoadError
    from server.batches.answers import AnswersError
    from server.batches.lines import LineLimits, TooManyLines
    from server.batches.run import Stopped
    from server.client.batch import InputError, run_files
    from server.commands import batch_progress

    async def work(begin: Callable[[Progress], None]) -> Progress:
        limits = LineLimits(max_line_bytes=most_bytes)
        return await run_files(
            source, out, opening, num_in_flight=number, give_up_s=give_up_s, limits=limits, on_begin=begin
        )

    began = time.monotonic()
    try:
        with batch_progress.shown(source.name) as begin:
            progress = asyncio.run(work(begin))
    except (InputError, TooManyLines, AnswersError, ModelLoadError) as error:
        return _fail(str(error))
    except Stopped as error:
        return _fail(f"{error}; to resume, run the same command again")
    except OSError as error:
        return _fail(f"{error.filename or out}: {error.strerror or error}")
    except KeyboardInterrupt:
        _fail("stopped; to resume, run the same command again")
        return 130
    print(batch_progress.summary(progress, out, time.monotonic() - began), file=sys.stderr)
    return 0


def _fail(reason: str) -> int:
    print(f"pippin: {reason}", file=sys.stderr)
    return 1


# --- where lines are sent


@asynccontextmanager
async def _over_http(url: str, key: str | None, number: int) -> AsyncIterator[Send]:
    from server.client.batch import HTTPSender
    from server.client.wire import read_key

    try:
        sender = HTTPSender(url, read_key(key), number)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from None
    try:
        yield sender.send
    finally:
        await sender.close()


@asynccontextmanager
async def _in_process(config: Config) -> AsyncIterator[Send]:
    """Load the models of the configuration. Raises ModelLoadError and OSError."""
    from mlx_backend.factory import set_buffer_limits
    from server.app import create_app
    from server.batches.run import Stopped
    from server.in_process import InProcess
    from server.logs import configure_logging
    from server.models import build_models
    from server.security.tenant import Tenant
    from server.service.registry import ModelRegistry

    level = "warning" if config.log_level == "info" else config.log_level  # else the log has a line per answer
    configure_logging(level, config.log_format, with_prompts=config.log_prompts, file=config.log_file)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if config.backend == "mlx":
        set_buffer_limits(config.memory, os.environ)
    config = replace(config, batches=replace(config.batches, dir=None))  # the folder is a server's, perhaps running
    models = build_models(config)
    required = [model for model in models if model.is_required]
    app = create_app(config, ModelRegistry(models, load_wait_s=config.residency.load_wait_s))
    requests = InProcess(app.admission, app.error_bodies, lambda: config.security, Tenant)

    async def send(url: str, body: bytes) -> Answer:
        for model in required:
            if model.failure is not None:
                raise Stopped(f"the model '{model.id}' has failed: {model.failure}")
        return await requests.send(url, body)

    async with app.router.lifespan_context(app):
        await _loaded(required)
        yield send


async def _loaded(models: Sequence[ServedModel]) -> None:
    """Wait until all models are loaded. Raises ModelLoadError."""
    from mlx_backend.api.errors import ModelLoadError

    for model in models:
        print(f"loading {model.id}", file=sys.stderr)
        while model.state != "loaded":
            if model.failure is not None:
                raise ModelLoadError(f"the model '{model.id}' cannot be loaded: {model.failure}")
            await asyncio.sleep(_POLL_S)
