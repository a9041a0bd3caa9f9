"""`pippin launch`: start a third-party agent that uses a running server. Options and exit codes.

All files go into a temporary folder, removed when the agent ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any, NoReturn
from urllib.parse import quote

import typer

from server.commands.chat import DEFAULT_URL
from server.config import ConfigError

_NAMES = "codex, opencode, claude or aider"
Name = typer.Argument(..., metavar="AGENT", help=f"Agent: {_NAMES}.")
Arguments = typer.Argument(None, metavar="[-- ARGS]", help="Arguments for the agent, after --.", show_default=False)
Url = typer.Option(DEFAULT_URL, "--url", metavar="URL", help="Server.")
Model = typer.Option(None, "--model", help="Model. Default: the first one loaded.", show_default=False)
Key = typer.Option(None, "--key", help="API key, or @FILE with the key.", show_default=False)


def launch(
    agent: str = Name,
    arguments: list[str] | None = Arguments,
    url: str = Url,
    model: str | None = Model,
    key: str | None = Key,
) -> None:
    """Start a coding agent configured for a running server. Leaves no files behind."""
    from server.client.agents import AGENTS, Target
    from server.client.wire import base_url, read_key

    found = AGENTS.get(agent)
    if found is None:
        raise ConfigError(f"unknown agent {agent!r}; use {_NAMES}")
    try:
        key, base = read_key(key), base_url(url)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from None
    program = which(found.command)
    if program is None:
        _fail(f"{found.command} is not installed, or not on PATH: {found.install}")
    chosen = _choose(base, key, model)
    context = chosen.get("max_model_len")
    target = Target(url=base, model=chosen["id"], key=key, context=context)
    _say(f"{agent} uses '{target.model}' at {base}")
    if context is not None and context < found.least_context:
        _say(f"its context is {context} tokens; {agent} needs about {found.least_context} for a task")
    with tempfile.TemporaryDirectory(prefix="pippin-") as name:
        folder = Path(name)
        prepared = found.prepare(target, folder)
        for file, text in prepared.files.items():
            (folder / file).write_text(text, encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if name not in prepared.unset}
        command = [program, *prepared.arguments, *(arguments or ())]
        code = _run(command, environment | dict(prepared.variables))
    raise typer.Exit(code)


def _choose(base: str, key: str | None, model: str | None) -> Mapping[str, Any]:
    """Return the model as the server lists it. Exits with 1 if there is no server or no such model."""
    import httpx2

    from server.client.agents import choose_model
    from server.client.wire import error_text, settings

    try:
        with httpx2.Client(**settings(base, key)) as http:
            answer = http.get("/v1/models")
            if answer.status_code == 200:
                chosen = choose_model(answer.json()["data"], model)
                answer = http.get(f"/v1/models/{quote(chosen['id'])}")
                if answer.status_code == 200:
                    return dict(answer.json())
    except httpx2.HTTPError as error:
        _fail(f"no answer from {base}: {error}. Start a server with `pippin serve`, or set --url")
    except (ValueError, LookupError, TypeError) as error:
        _fail(f"{base} does not answer as Pippin does: {error}")
    _fail(f"{base}: {error_text(answer.status_code, answer.content)}")


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Return the agent's exit code; 128 plus the signal's number if a signal ended it."""
    with _patient() as signals:
        process = subprocess.Popen(command, env=dict(environment))
        signals.reach(process)
        code = process.wait()
    return code if code >= 0 else 128 - code


class _Signals:
    """Forwards signals to a process, including those that arrived before it started."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting: list[int] = []

    def take(self, number: int, _: object = None) -> None:
        if self._process is None:
            self._waiting.append(number)
        else:
            self._process.send_signal(number)

    def reach(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        for number in self._waiting:
            process.send_signal(number)


@contextmanager
def _patient() -> Iterator[_Signals]:
    """Leave Ctrl-C to the agent, which receives it from the terminal, and forward signals that end this process."""
    signals = _Signals()
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, lambda *_: None)  # a handler: the agent would inherit SIG_IGN
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signals.take)
    try:
        yield signals
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    print(f"pippin: {text}", file=sys.stderr)


def _fail(text: str) -> NoReturn:
    _say(text)
    raise typer.Exit(1)
