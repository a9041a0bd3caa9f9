"""A model over several processes, as a user serves it: however it ends, every process has ended, and clients know."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server_process import DEADLINE_S, ServerProcess, live_stats, serving
from tests.tiny_models import write_served_model

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")

MOCK = ("--backend", "mock", "--ranks", "2", "--mock-itl-s", "0.02", "--mock-context", "100000")
LONG = {"prompt": "hello", "max_tokens": 5000, "ignore_eos": True, "stream": True}


def follower_of(server: ServerProcess) -> int:
    """The process of rank 1."""
    (child,) = _children(server.process.pid)
    return child


def _children(parent: int) -> list[int]:
    """Children that run a rank; grammars have processes, too."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_text()
        except OSError:
            continue  # it has ended meanwhile
        if int(fields[1]) == parent and "mlx_backend.follow" in command:
            found.append(int(stat.parent.name))
    return found


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "the awaited state did not come"
        time.sleep(0.01)


class Streaming:
    """A client that reads a long answer on a thread of its own."""

    def __init__(self, client: httpx.Client) -> None:
        self._url = str(client.base_url)
        self.events: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        until(lambda: len(self.events) > 3)

    def _read(self) -> None:
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.Client(base_url=self._url, timeout=DEADLINE_S) as client,
            client.stream("POST", "/v1/completions", json=LONG) as response,
        ):
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    self.events.append(json.loads(line.removeprefix("data: ")))

    def last(self) -> dict[str, Any]:
        """The event that ended the stream."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the stream did not end"
        return self.events[-1]


@contextmanager
def decoding(*arguments: str) -> Iterator[tuple[ServerProcess, int, Streaming]]:
    """A server over two ranks, the process of rank 1, and a client in the middle of an answer."""
    with serving(*arguments) as (server, client):
        follower = follower_of(server)
        try:
            yield server, follower, Streaming(client)
        finally:
            if _runs(follower):
                os.kill(follower, signal.SIGKILL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_served_model(tmp_path_factory.mktemp("models") / "llama", max_position_embeddings=8192)


def test_a_follower_that_is_killed_ends_the_streams_and_the_server() -> None:
    with decoding(*MOCK) as (server, follower, stream):
        os.kill(follower, signal.SIGKILL)
        assert "rank 1" in stream.last()["error"]["message"]
        assert server.wait() == 1
        assert any("rank 1 is lost" in line for line in server.lines), server.lines


@pytest.mark.soak
@pytest.mark.mlx
def test_a_follower_that_is_killed_ends_a_server_that_waits_for_it_in_a_computation(folder: Path) -> None:
    with decoding(str(folder), "--ranks", "2", "--parallel", "tensor") as (server, follower, stream):
        os.kill(follower, signal.SIGKILL)
        assert "rank 1" in stream.last()["error"]["message"]
        assert server.wait() == 1


@pytest.mark.soak
@pytest.mark.mlx
def test_a_killed_leader_leaves_no_follower_in_a_computation(folder: Path) -> None:
    with decoding(str(folder), "--ranks", "2") as (server, follower, _):
        server.process.kill()
        until(lambda: not _runs(follower))


def check_what_is_shown(client: httpx.Client) -> None:
    """Both ranks are in every report, and rank 1 has said what it holds and answered a message."""
    until(lambda: client.get("/admin/models").json()["data"][0]["ranks"][1]["active_bytes"] > 0)
    until(lambda: client.get("/admin/models").json()["data"][0]["ranks"][1]["round_trip_s"] is not None)
    ranks = client.get("/v1/models").json()["data"][0]["pippin"]["ranks"]
    assert (ranks["count"], ranks["parallel"], ranks["link"]) == (2, "tensor", "loopback (MLX's ring)")
    assert [rank["weights_bytes"] for rank in ranks["ranks"]] == [1 << 20] * 2
    assert 'pippin_rank_memory_bytes{kind="active",model="mock",rank="1"}' in client.get("/metrics").text
    (model,) = client.get("/status").json()["models"]
    assert [rank["rank"] for rank in model["ranks"]["ranks"]] == [0, 1]
    assert live_stats(client)["ranks"][1]["is_busy"] is False


def test_a_drain_answers_what_was_admitted_and_ends_all_with_0() -> None:
    with serving(*MOCK) as (server, client):
        follower = follower_of(server)
        answers: list[httpx.Response] = []

        def ask() -> None:
            with httpx.Client(base_url=client.base_url, timeout=DEADLINE_S) as mine:
                answers.append(mine.post("/v1/completions", json={**LONG, "max_tokens": 40, "stream": False}))

        check_what_is_shown(client)
        asking = threading.Thread(target=ask)
        asking.start()
        until(lambda: client.get("/health").json()["models"][0]["stats"]["num_running"] == 1)
        os.kill(follower, signal.SIGTERM)  # as a service manager does, of all processes
        assert server.stop() == 0
        asking.join()
        assert answers[0].json()["usage"]["completion_tokens"] == 40
        assert not _runs(follower)
        assert not any("lost" in line for line in server.lines), server.lines


@pytest.mark.mlx
def test_a_model_that_cannot_be_split_so_is_refused_in_one_line(folder: Path) -> None:
    server = ServerProcess(str(folder), "--ranks", "2", "--parallel", "pipeline")
    assert server.wait() == 1
    says = "has no pipeline parallelism for llama models; possible: tensor over 2 ranks"
    assert [line for line in server.lines if line.startswith("pippin: ") and says in line], server.lines


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--prefix-cache-dir", "/tmp/blocks"), "prefix_cache.dir is for a model in one process"),
        (("--record", "/tmp/run"), "debug.record is for a model in one process"),
        (("--residency-keep-alive-s", "5"), "ranks.count needs a single model that stays loaded"),
    ],
)
def test_what_cannot_be_shared_is_refused_at_once(arguments: tuple[str, ...], says: str) -> None:
    server = ServerProcess("--backend", "mock", "--ranks", "2", *arguments)
    assert server.wait() != 0
    assert any(says in line for line in server.lines), server.lines


def test_a_server_that_is_ended_while_it_loads_leaves_no_process() -> None:
    server = ServerProcess("--backend", "mock", "--ranks", "2", "--mock-load-s", "60")
    until(lambda: bool(_children(server.process.pid)))
    follower = follower_of(server)
    assert server.stop() == 0
    assert not _runs(follower)
