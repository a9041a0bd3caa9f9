"""`pippin ps` against a server that runs: the table, JSON, and no server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator

import httpx
import pytest

from mlx_backend.api.interface import MemoryConfig, MockConfig
from server import cli
from server.app import create_app
from server.commands import ps
from server.config import Config
from server.config_models import ModelEntry
from server.models import build_models
from server.service.registry import ModelRegistry

CONFIG = Config(
    backend="mock",
    models=(ModelEntry(name="a", model="mock", pinned=True), ModelEntry(name="b", model="mock", keep_alive_s=600.0)),
    memory=MemoryConfig(limit_gb=0.01),
    mock=MockConfig(itl_s=0.01),
)


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    return int(ended.value.code or 0)


@pytest.fixture
def url() -> Iterator[str]:
    """A server in a thread."""
    import uvicorn

    from tests.serving import wait_until

    registry = ModelRegistry(build_models(CONFIG))
    app = create_app(CONFIG, registry)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    wait_until(lambda: registry.resolve("a").state == "loaded")
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def test_a_table_of_models(url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")
    assert run("ps", "--url", url) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:3] == ["model", "state", "weights"]
    assert rows[1][:4] == ["a", "loaded", "1.05", "MB"]
    assert rows[1][-1] == "pinned"
    assert rows[2] == ["b", "unloaded", "-", "-", "-", "0", "0", "-", "-"]


def test_a_model_that_works_has_a_speed(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def work_and_look() -> None:
        body = {"model": "b", "prompt": "x", "max_tokens": 500, "ignore_eos": True, "stream": True}
        async with httpx.AsyncClient(base_url=url) as client, client.stream("POST", "/v1/completions", json=body) as s:
            async for _ in s.aiter_bytes():
                await asyncio.to_thread(run, "ps", "--url", f"{url}/v1", "--json")
                return

    asyncio.run(work_and_look())
    b = json.loads(capsys.readouterr().out)[1]
    assert (b["state"], b["num_running"], b["num_users"]) == ("loaded", 1, 1)
    assert b["tokens_per_s"] > 1


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ps", "--url", "http://127.0.0.1:9") == 1
    assert capsys.readouterr().err.startswith("pippin: no answer from http://127.0.0.1:9: ")
    assert run("ps", "--url", "ftp://x") == 2


def test_when_a_model_goes() -> None:
    model = {"pinned": False, "state": "loaded", "keep_alive_s": 60.0, "idle_s": 20.4}
    assert ps._until(model) == "40 s"
    assert ps._until({**model, "idle_s": None}) == ps._until({**model, "keep_alive_s": None}) == "-"
