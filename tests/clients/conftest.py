"""A server with the pocket model, and a way to run an example against it, as a user would, in .venv-clients."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server import pocket
from tests.clients.running import ROOT, environment, run, url_of
from tests.server_process import serving

CLIENTS = ROOT / ".venv-clients" / "bin"

Example = Callable[..., str]
"""Its file in examples/ and its further arguments -> what it wrote to stdout."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    assert pocket.is_here(), "the weights are not there; `make pocket` makes them"
    with serving() as (_, client):
        yield url_of(client)


@pytest.fixture
def way_out() -> Iterator[socket.socket]:
    """Stands for the rest of the world: a proxy that nobody should ask."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        yield proxy
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


@pytest.fixture
def example(url: str, way_out: socket.socket, tmp_path: Path) -> Example:
    assert CLIENTS.is_dir(), "the clients are not there; `make clients` sets them up"

    def run_example(name: str, *arguments: str) -> str:
        path = str(ROOT / "examples" / name)
        command = [str(CLIENTS / "python"), path] if name.endswith(".py") else [path]
        env = environment(tmp_path, way_out)
        env["PATH"] = f"{CLIENTS}:{env['PATH']}"
        return run([*command, url, *arguments], env=env, cwd=tmp_path)

    return run_example
