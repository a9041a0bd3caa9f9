"""Other people's programs, run with an environment and a home of their own, on loopback alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import pocket
from tests.server_process import ServerProcess, serving

ROOT = Path(__file__).parents[2]
NPM = ROOT / "build" / "npm-clients" / "node_modules"
DEADLINE_S = 1800.0


def of_npm(*names: str) -> pytest.MarkDecorator:
    """Leave tests out where packages are not there."""
    missing = [name for name in names if not (NPM / name).is_dir()]
    return pytest.mark.skipif(bool(missing), reason=f"{missing} are not there; `make clients` sets them up")


def environment(home: Path, way_out: socket.socket | None = None, **variables: str) -> dict[str, str]:
    """Variables of a program, with a proxy for whatever is not this server; without `way_out` none listens there."""
    proxy = f"http://127.0.0.1:{9 if way_out is None else way_out.getsockname()[1]}"
    proxies = {name: proxy for lower in ("http_proxy", "https_proxy", "all_proxy") for name in (lower, lower.upper())}
    return {
        "PATH": f"{NPM / '.bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        **proxies,
        "no_proxy": "127.0.0.1",
        "NO_PROXY": "127.0.0.1",
        **variables,
    }


def run(command: Sequence[str], *, env: Mapping[str, str], cwd: Path, text: str | None = None) -> str:
    """The standard output of a program that ends well; its input is `text`, or nothing at all."""
    ran = subprocess.run(
        command,
        env=env,
        cwd=cwd,
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert ran.returncode == 0, ran.stderr + ran.stdout
    return ran.stdout


def run_script(path: Path, url: str, folder: Path, way_out: socket.socket) -> list[str]:
    """The lines of a JavaScript program, which finds its packages."""
    (folder / "node_modules").symlink_to(NPM)
    copy = folder / path.name
    copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    return run(["node", str(copy), url], env=environment(folder, way_out), cwd=folder).splitlines()


def called(name: str, arguments: Mapping[str, Any], before: str = "") -> str:
    """A call as the pocket model writes it."""
    return f"{before}<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@contextmanager
def scripted(
    folder: Path, answers: Iterable[tuple[str, str]], *options: str
) -> Iterator[tuple[ServerProcess, httpx.Client]]:
    """A mock that writes the first answer with an expression that is found; with the pocket model's tokens."""
    script = folder / "answers.jsonl"
    lines = (json.dumps({"match": match, "text": text}) + "\n" for match, text in answers)
    script.write_text("".join(lines), encoding="utf-8")
    mock = ("--backend", "mock", "--mock-context", "400000", "--mock-script", str(script))
    with serving(*mock, "--mock-tokenizer", str(pocket.folder()), *options) as (server, client):
        yield server, client


def url_of(client: httpx.Client) -> str:
    return str(client.base_url).rstrip("/")
