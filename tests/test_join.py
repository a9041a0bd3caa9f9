"""Two machines, as a user serves one model over them: `pippin serve --hostfile` and `pippin join`, on loopback."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from mlx_backend import follow
from mlx_backend.ranks.addresses import free_addresses
from mlx_backend.ranks.follower import LEADER_LOST, REFUSED
from tests.server_process import DEADLINE_S, ServerProcess
from tests.test_ranks import LONG, Streaming, until


class Machines:
    """A hostfile of two ranks with addresses on loopback, and a key."""

    def __init__(self, folder: Path) -> None:
        self.leader, *addresses = free_addresses(3)
        self.folder = folder
        (folder / "hosts.json").write_text(json.dumps([[address] for address in addresses]))
        self.key("right", "r" * 64)
        self._joined: list[subprocess.Popen[str]] = []

    def key(self, name: str, secret: str) -> str:
        file = self.folder / name
        file.write_text(secret)
        file.chmod(0o600)
        return f"@{file}"

    @contextmanager
    def serving(self, *arguments: str) -> Iterator[ServerProcess]:
        given = ("--hostfile", str(self.folder / "hosts.json"), "--key", f"@{self.folder / 'right'}")
        server = ServerProcess(*arguments, *given, "--ranks-port", self.leader.rpartition(":")[2])
        try:
            until(lambda: any("pippin join" in line for line in server.lines) or server.process.poll() is not None)
            yield server
        finally:
            if server.process.poll() is None:
                server.process.kill()
                server.wait()

    def join(self, key: str = "right", *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "server", "join", self.leader, "--key", f"@{self.folder / key}", *arguments]
        self._joined.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return self._joined[-1]

    def close(self) -> None:
        for process in self._joined:
            process.kill()
            process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """(exit code, what it has written)"""
    _, text = process.communicate(timeout=DEADLINE_S)
    return process.returncode, text


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    found = Machines(tmp_path)
    yield found
    found.close()


def test_a_model_is_served_over_two_ranks_that_join_and_all_end_with_0(machines: Machines) -> None:
    machines.key("wrong", "w" * 64)
    with machines.serving("--backend", "mock") as server:
        code, text = ended(machines.join("wrong"))  # first: with all ranks there, nothing is greeted any more
        assert code == REFUSED and text.count("\n") == 1 and "copy rank 0's key file" in text
        right = machines.join()
        with httpx.Client(base_url=server.url(), timeout=DEADLINE_S) as client:
            answer = client.post("/v1/completions", json={**LONG, "stream": False, "max_tokens": 3})
            assert answer.json()["usage"]["completion_tokens"] == 3
        assert server.stop() == 0
        code, text = ended(right)
        assert code == 0 and "joined as rank 1 of 2" in text, text
        assert sum("another key" in line for line in server.lines) == 1, server.lines
    code, text = ended(machines.join())
    assert code == LEADER_LOST and text.count("\n") == 1 and "refused; start it" in text


@pytest.mark.soak
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_rank_that_is_ended_ends_streams_and_server_with_a_line(
    machines: Machines, number: signal.Signals, code: int
) -> None:
    with machines.serving("--backend", "mock", "--mock-itl-s", "0.02", "--mock-context", "100000") as server:
        joined = machines.join()
        with httpx.Client(base_url=server.url(), timeout=DEADLINE_S) as client:
            stream = Streaming(client)
            joined.send_signal(number)
            assert "rank 1" in stream.last()["error"]["message"]
        assert server.wait() == 1
        assert ended(joined)[0] == code


@pytest.mark.soak
def test_a_killed_leader_ends_the_ranks_that_joined(machines: Machines) -> None:
    with machines.serving("--backend", "mock") as server:
        joined = machines.join()
        server.url()
        server.process.kill()
        code, text = ended(joined)
        assert code == LEADER_LOST and "rank 1 ends: rank 0 is lost" in text


def test_a_server_of_another_kind_is_no_rank_0() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        with pytest.raises(follow.CannotJoin, match="what listens at the port does not greet as rank 0") as caught:
            follow.greet("the port", server.getsockname(), bytes(32))
    assert caught.value.code == LEADER_LOST


@pytest.mark.parametrize(
    ("leader", "key", "says"),
    [
        ("localhost", "@right", "'localhost' is no HOST:PORT"),
        ("127.0.0.1:7400", "", "a key is given as @FILE"),
        ("127.0.0.1:7400", "@none", "there is no key file none; make one"),
    ],
)
def test_what_cannot_join_ends_with_2_and_a_line(
    machines: Machines,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    leader: str,
    key: str,
    says: str,
) -> None:
    monkeypatch.chdir(machines.folder)
    assert follow.follow(leader, key) == follow.WRONG_USAGE
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("pippin: ") and says in error
