"""Several models in one process: what a death means, and how the process ends."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from server.config import Config, ResidencyConfig
from server.models import build_model
from tests.server_process import ServerProcess, serving
from tests.serving import wait_until

CONFIG = """
backend: mock
{mock}
models:
  a: mock
  b: {{model: mock, pinned: {pinned}}}
"""


def write(tmp_path: Path, *, pinned: bool, mock: str = "") -> str:
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG.format(pinned=str(pinned).lower(), mock=mock), encoding="utf-8")
    return str(file)


def ask(client: httpx.Client, model: str) -> httpx.Response:
    return client.post("/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 8, "ignore_eos": True})


def states(client: httpx.Client) -> dict[str, Any]:
    return {model["id"]: model["state"] for model in client.get("/v1/models").json()["data"]}


def test_models_are_loaded_when_asked_for_and_a_signal_ends_it_with_0(tmp_path: Path) -> None:
    with serving("--config", write(tmp_path, pinned=False)) as (server, client):
        assert states(client) == {"a": "unloaded", "b": "unloaded"}
        assert [ask(client, name).status_code for name in "ab"] == [200, 200]
        assert states(client) == {"a": "loaded", "b": "loaded"}
        assert client.post("/v1/completions", json={"prompt": "x"}).json()["error"]["param"] == "model"
        assert server.stop() == 0


def test_one_models_death_is_not_the_servers(tmp_path: Path) -> None:
    with serving("--config", write(tmp_path, pinned=False, mock="mock: {fault: die@12}")) as (server, client):
        assert ask(client, "b").status_code == 200
        assert ask(client, "a").status_code == 200
        died = ask(client, "a")
        assert (died.status_code, died.json()["error"]["code"]) == (503, "engine_dead")
        wait_until(lambda: states(client)["a"] == "failed")
        assert states(client) == {"a": "failed", "b": "loaded"}
        assert (client.get("/health").status_code, client.get("/ready").status_code) == (200, 200)
        assert client.post("/admin/models/a/load").json()["state"] == "loaded"
        assert ask(client, "a").status_code == 200
        assert server.stop() == 0


def test_a_pinned_models_death_ends_the_process_with_1(tmp_path: Path) -> None:
    with serving("--config", write(tmp_path, pinned=True, mock="mock: {fault: die@4}")) as (server, client):
        assert states(client) == {"a": "unloaded", "b": "loaded"}
        assert ask(client, "b").status_code == 503
        assert server.wait() == 1
        assert server.lines[-1].endswith("the mock was told to kill the device thread")


def test_a_signal_while_a_model_loads_ends_it_with_0(tmp_path: Path) -> None:
    mock = "mock: {load_s: 60}\nstream: {drain_s: 0}"
    with serving("--config", write(tmp_path, pinned=False, mock=mock)) as (server, client):
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(ask(client, "a")))
        asking.start()
        wait_until(lambda: states(client)["a"] == "loading")
        assert server.stop() == 0
        asking.join(30)
        assert [answer.status_code for answer in answers] == [503]


def test_one_model_goes_when_it_is_idle_and_comes_back() -> None:
    with serving("--backend", "mock", "--residency-keep-alive-s", "0.2") as (server, client):
        wait_until(lambda: states(client) == {"mock": "unloaded"})
        assert ask(client, "mock").status_code == 200
        assert server.stop() == 0


@pytest.mark.mlx
@pytest.mark.parametrize(("verify", "is_served"), [("first", False), ("never", True)])
def test_a_damaged_model_is_not_loaded_and_the_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: Literal["first", "never"], is_served: bool
) -> None:
    from tests.tiny_models import write_served_model

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_served_model(tmp_path / "tiny")
    (folder / "SHA256SUMS").write_text("0" * 64 + "  config.json\n")
    model = build_model(Config(model=str(folder), residency=ResidencyConfig(verify=verify)))
    model.start()
    try:
        wait_until(lambda: model.health().status != "loading")
        assert (model.health().status == "ok") == is_served
        assert (f"{folder / 'config.json'} is damaged: its SHA-256 is " in str(model.failure)) != is_served
    finally:
        model.close()


# --- streams whose model loads first

STREAMED = {"prompt": "x", "max_tokens": 8, "ignore_eos": True, "stream": True}
LOADING = """
backend: mock
mock: {load_s: 1}
stream: {keep_alive_s: 0.1}
context: {on_max_tokens: error}
models: {a: mock, b: mock, c: mock}
"""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, httpx.Client]]:
    """Each test has a model of its own there."""
    file = tmp_path_factory.mktemp("slow") / "c.yaml"
    file.write_text(LOADING, encoding="utf-8")
    with serving("--config", str(file)) as served:
        yield served


def test_a_stream_hears_that_its_model_loads(slow: tuple[ServerProcess, httpx.Client]) -> None:
    _, client = slow
    with client.stream("POST", "/v1/completions", json={**STREAMED, "model": "a"}) as answer:
        events = "".join(answer.iter_text()).split("\n\n")
    assert answer.status_code == 200
    comments = [event for event in events if event.startswith(":")]
    assert comments[0].startswith(": loading ") or comments[0] == ": keep-alive"
    assert any(comment.startswith(": loading ") for comment in comments)
    said = [event.removeprefix("data: ") for event in events if not event.startswith(":")]
    assert said[-2:] == ["[DONE]", ""]
    chunks = list(map(json.loads, said[:-2]))
    assert {chunk["object"] for chunk in chunks} == {"text_completion"} and chunks[0]["model"] == "a"
    assert ask(client, "a").status_code == 200


def test_a_client_that_leaves_while_its_model_loads_leaves_nothing(slow: tuple[ServerProcess, httpx.Client]) -> None:
    server, client = slow
    with client.stream("POST", "/v1/completions", json={**STREAMED, "model": "b"}) as answer:
        chunks = answer.iter_text()
        assert next(chunks).startswith(":")
    wait_until(lambda: states(client)["b"] == "loaded")
    (model,) = (model for model in client.get("/admin/models").json()["data"] if model["id"] == "b")
    assert model["num_users"] == 0
    assert ask(client, "b").status_code == 200
    assert not [line for line in server.lines if "ERROR" in line or "never retrieved" in line]


def test_what_goes_wrong_behind_a_late_beginning_is_an_event(slow: tuple[ServerProcess, httpx.Client]) -> None:
    _, client = slow
    body = {**STREAMED, "model": "c", "max_tokens": 100_000}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        events = [event for event in "".join(answer.iter_text()).split("\n\n") if not event.startswith(":")]
    assert answer.status_code == 200
    assert json.loads(events[0].removeprefix("data: "))["error"]["code"] == "context_length_exceeded"
    refused = client.post("/v1/completions", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
