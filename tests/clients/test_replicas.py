"""The router smg before two replicas: what docs/replicas.md says works through it, does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import pocket
from tests.clients.replicas import DEADLINE_S, ROOT, Replicas, replicas, wait_until

pytestmark = pytest.mark.clients

CACHED = ROOT / "examples" / "replicas" / "cached.py"
KEYS = ("--security-keys-file", "keys.json")
PLACE = "x-smg-routed-worker-id"


SLOW = ("--backend", "mock", "--mock-itl-s", "0.02", "--mock-ttft-s", "1", "--stream-keep-alive-s", "0.2")
"""To be left, or killed, in the middle."""


@pytest.fixture(scope="module")
def mocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    with replicas(tmp_path_factory.mktemp("home"), *SLOW) as started:
        yield started


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Replicas]:
    """For a test that ends one of them."""
    with replicas(tmp_path, *SLOW) as started:
        yield started


def body(prompt: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": "mock", "prompt": prompt, "max_tokens": 500, "ignore_eos": True, **more}


def ask(started: Replicas, key: str = "", **more: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{started.url}/v1/completions", json=body(**more), headers=headers, timeout=DEADLINE_S)


def test_the_next_turn_goes_to_the_replica_that_has_the_last(tmp_path: Path) -> None:
    """With the tokenizer of the pocket model, and made-up answers: what is cached does not depend on them."""
    shares = {}
    for policy in ("cache_aware", "round_robin"):
        options = ("--backend", "mock", "--mock-itl-s", "0.01", "--mock-tokenizer", str(pocket.folder()))
        with replicas(tmp_path, *options, POLICY=policy) as started:
            ran = subprocess.run(
                [sys.executable, str(CACHED), started.url, "--at-once", "6"],
                capture_output=True,
                text=True,
                check=True,
                timeout=DEADLINE_S,
            )
            shares[policy] = int(re.findall(r"(\d+)% of", ran.stdout)[0])
            assert all(started.stats(worker)["num_finished"] for worker in started.workers)
    assert shares["cache_aware"] >= 80 > shares["round_robin"]


def test_comments_headers_and_unknown_fields_pass(mocked: Replicas) -> None:
    asked = httpx.stream(
        "POST",
        f"{mocked.url}/v1/completions",
        json=body(max_tokens=2, stream=True, no_such_field=1),
        headers={"X-Request-Id": "mine-1"},
        timeout=DEADLINE_S,
    )
    with asked as answer:
        lines = list(answer.iter_lines())
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-pippin-ignored-fields"] == "no_such_field"
    assert answer.headers[PLACE] in mocked.workers
    assert any(re.match(r": prefill \d+%", line) for line in lines)
    assert [line for line in lines if line.startswith("data")][-1] == "data: [DONE]"


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_leaves_ends_the_work(mocked: Replicas, streams: bool) -> None:
    def count(*names: str) -> int:
        return sum(mocked.stats(worker)[name] for worker in mocked.workers for name in names)

    before = count("num_aborted"), count("num_finished")
    with httpx.Client(timeout=DEADLINE_S) as client:
        if streams:
            with client.stream("POST", f"{mocked.url}/v1/completions", json=body(stream=True)) as answer:
                lines = answer.iter_lines()  # to be kept: the stream ends with it
                next(line for line in lines if line.startswith("data"))
                wait_until(lambda: count("num_running") == 1)
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{mocked.url}/v1/completions", json=body(), timeout=httpx.Timeout(DEADLINE_S, read=2))
    wait_until(lambda: count("num_running", "num_prefilling", "num_waiting") == 0)
    assert (count("num_aborted"), count("num_finished")) == (before[0] + 1, before[1])


def test_a_replica_that_is_killed(mortal: Replicas) -> None:
    """A stream that has begun ends with an error; what has not begun, and what comes later, goes to the other one."""
    with httpx.stream("POST", f"{mortal.url}/v1/completions", json=body(stream=True), timeout=DEADLINE_S) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        next(lines)
        mortal.kill(answer.headers[PLACE])
        *_, error, done = lines
    assert json.loads(error.removeprefix("data: "))["error"]["type"] == "stream_error"
    assert done == "data: [DONE]"
    (left,) = {*mortal.workers} - {answer.headers[PLACE]}
    for number in range(6):
        answer = ask(mortal, prompt=f"{number}", max_tokens=1)
        assert (answer.status_code, answer.headers[PLACE]) == (200, left)


def test_a_replica_that_drains(mortal: Replicas) -> None:
    """Its stream ends as it should, and new requests go to the other one at once."""
    with httpx.stream(
        "POST", f"{mortal.url}/v1/completions", json=body(stream=True, max_tokens=200), timeout=DEADLINE_S
    ) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        next(lines)
        mortal.kill(answer.headers[PLACE], 15)
        for number in range(4):
            other = ask(mortal, prompt=f"{number}", max_tokens=1)
            assert other.status_code == 200 and other.headers[PLACE] != answer.headers[PLACE]
        *_, last, done = lines
    assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert done == "data: [DONE]"


def test_the_router_reads_the_load(mocked: Replicas) -> None:
    """By the names of vLLM's metrics: a replica with a long queue gets nothing new."""

    def waiting() -> int:
        loads = httpx.get(f"{mocked.url}/get_loads").json()["loads"]
        return sum(int(load["num_waiting_reqs"]) + int(load["num_running_reqs"]) for load in loads)

    direct = f"{mocked.workers[0]}/v1/completions"
    with httpx.stream("POST", direct, json=body(stream=True, n=5, max_tokens=3000), timeout=DEADLINE_S):
        wait_until(lambda: waiting() == 5)


def test_keys_are_those_of_the_replicas(tmp_path: Path) -> None:
    """The router has one for itself; a client's own, which it must know, goes on to the replica."""
    keys = [_make_key(tmp_path, name) for name in ("router", "anna")]
    given = f"--api-key {keys[0]} --tenant-api-key anna:{keys[1]}"
    with replicas(tmp_path, "--backend", "mock", *KEYS, SMG_ARGS=given) as started:
        assert [ask(started, key, max_tokens=1).status_code for key in (*keys, "sk-wrong", "")] == [200, 200, 401, 401]
        used = [httpx.get(f"{w}/metrics", headers={"X-Api-Key": keys[0]}).status_code for w in started.workers]
        assert used == [200, 200]


def _make_key(folder: Path, name: str) -> str:
    command = [sys.executable, "-m", "server", "keys", "add", name, "--file", str(folder / "keys.json")]
    made = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return re.findall(r"[\w-]{24,}", made.stdout)[0]
