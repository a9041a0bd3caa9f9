"""The server as a process: what a user who starts it sees, and the code it ends with."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.server_process import DEADLINE_S, ServerProcess, live_stats, serving
from tests.tiny_models import write_model, write_served_model

ASK = {"prompt": "hello", "max_tokens": 8}
LOGGED = re.compile(r"\d{4}-\d\d-\d\d ")


def failing(*arguments: str) -> tuple[int, list[str]]:
    """Exit code and what was printed, of a server that should not come up; log lines left out."""
    server = ServerProcess(*arguments)
    code = server.wait()
    assert not any("Traceback" in line for line in server.lines), server.lines
    return code, [line for line in server.lines if not LOGGED.match(line)]


def test_the_mock_serves_without_importing_mlx() -> None:
    code = (
        "import sys; sys.modules['mlx'] = sys.modules['mlx_lm'] = sys.modules['transformers'] = None\n"
        "from server.config import Config; from server.models import build_model\n"
        "from server.app import create_app; from server.service.registry import ModelRegistry\n"
        "model = build_model(Config(backend='mock')); create_app(Config(), ModelRegistry([model])); model.start()\n"
        "import time\nwhile model.health().status == 'loading': time.sleep(0.01)\n"
        "assert model.health().status == 'ok', model.health(); model.close(); print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.stdout == "fine\n", done.stderr


def test_it_serves_and_a_signal_ends_it_with_0() -> None:
    with serving("--backend", "mock") as (server, client):
        assert client.get("/ready").status_code == 200
        assert client.post("/v1/completions", json=ASK).json()["usage"]["completion_tokens"] == 8
        assert server.stop() == 0


@pytest.mark.mlx
def test_a_checkpoint_is_served(tmp_path: Path) -> None:
    arguments = [str(write_served_model(tmp_path / "tiny")), "--memory-max-ops-per-buffer", "500"]
    with serving(*arguments) as (server, client):
        assert any("MLX_MAX_OPS_PER_BUFFER=500 (memory.max_ops_per_buffer)" in line for line in server.lines)
        (model,) = client.get("/v1/models").json()["data"]
        assert model["id"] == "tiny"
        assert model["max_model_len"] == 2048
        assert model["pippin"]["is_batched"]
        answer = client.post("/v1/completions", json={**ASK, "ignore_eos": True}).json()
        assert answer["usage"]["completion_tokens"] == 8
        assert len(answer["choices"][0]["text"]) > 0
        assert server.stop() == 0


def test_a_dead_engine_answers_then_ends_the_process_with_1() -> None:
    server = ServerProcess("--backend", "mock", "--mock-fault", "die@5", "--mock-itl-s", "0.01")
    url = server.url()
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(f"{url}/v1/completions", json={**ASK, "max_tokens": 100}, timeout=DEADLINE_S))

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    health = httpx.get(f"{url}/health")
    assert health.status_code == 503
    assert health.json()["status"] == "dead"
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in answers] == [(503, "engine_dead")] * 3
    assert server.wait() == 1
    assert any("the mock was told to kill the device thread" in line for line in server.lines)


def ask_in_vain(client: httpx.Client) -> None:
    with suppress(httpx.HTTPError):  # a connection that is cut is one way not to answer
        assert client.post("/v1/completions", json=ASK).status_code >= 500


def test_a_hanging_device_is_unhealthy_and_a_signal_still_ends_it() -> None:
    arguments = ("--backend", "mock", "--mock-fault", "hang@2", "--health-stall-s", "0.1", "--stream-drain-s", "0")
    with serving(*arguments) as (server, client):
        asking = threading.Thread(target=ask_in_vain, args=(client,))
        asking.daemon = True
        asking.start()
        end = time.monotonic() + DEADLINE_S
        while httpx.get(f"{client.base_url}/health").status_code != 503:
            assert time.monotonic() < end
        assert live_stats(client)["num_running"] == 1
        server.process.terminate()
        server.wait()


def test_loading_shows_how_far_it_is_and_requests_are_told_to_wait() -> None:
    server = ServerProcess("--backend", "mock", "--mock-load-s", "1000", "--log-level", "info")
    try:
        end = time.monotonic() + DEADLINE_S
        while not any("listening on" in line for line in server.lines):
            assert time.monotonic() < end
            time.sleep(0.01)
        url = next(found[0] for line in server.lines if (found := re.search(r"http://[\d.:]+", line)))
        ready = httpx.get(f"{url}/ready", timeout=DEADLINE_S)
        assert ready.status_code == 503
        assert ready.json()["models"][0]["load"]["total_bytes"] > 0
        assert httpx.get(f"{url}/health").status_code == 200
        refused = httpx.post(f"{url}/v1/completions", json=ASK)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_loading")
        assert "retry-after" in refused.headers
    finally:
        assert server.stop() == 0


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "server", "serve", "--backend", "mock", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 1
    assert f"pippin: cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_such_folder() -> None:
    code, lines = failing("/no/such/folder")
    assert code == 1
    assert lines == [
        "pippin: folder /no/such/folder does not exist; name a model folder, or a hub id such as owner/model"
    ]


DAMAGES = {
    "no config": "no config.json",
    "truncated": "is truncated",
    "architecture": "does not support the architecture 'nonesuch'",
    "no tokenizer": "tokenizer",
    "limit": "more than the model's own 2048",
    "bits": "does not divide this model's heads of 16; no group size does; leave it unset",
}
SERVE_EACH = """
import json, sys
from server.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(["serve", *arguments, "--port", "0"])
    except SystemExit as ended:
        print("exit code", ended.code, file=sys.stderr, flush=True)
"""


def damaged(folder: Path, damage: str) -> list[str]:
    """What `serve` is given for a folder with that damage, which is written."""
    if damage == "no tokenizer":
        write_model(folder, "llama")
    else:
        write_served_model(folder)
    config, weights = folder / "config.json", folder / "model.safetensors"
    if damage == "no config":
        config.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-5000])
    elif damage == "architecture":
        config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "nonesuch"}))
    elif damage == "limit":
        return [str(folder), "--context-limit", "4096"]
    elif damage == "bits":
        return [str(folder), "--kv-cache-bits", "8"]
    return [str(folder)]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What `serve` prints of each damage, and its exit code: one after the other in one process, which imports once."""
    folder = tmp_path_factory.mktemp("damaged")
    arguments = [damaged(folder / damage.replace(" ", "-"), damage) for damage in DAMAGES]
    command = [sys.executable, "-c", SERVE_EACH, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    found: list[list[str]] = [[]]
    for line in done.stderr.splitlines():
        if not LOGGED.match(line):
            found[-1].append(line)
        if line.startswith("exit code "):
            found.append([])
    assert found.pop() == []
    return dict(zip(DAMAGES, found, strict=True))


@pytest.mark.mlx
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_cannot_be_served(said: dict[str, list[str]], damage: str) -> None:
    line, code = said[damage]
    assert code == "exit code 1"
    assert line.startswith("pippin: ")
    assert DAMAGES[damage] in line
