"""Hostile grammars over HTTP: each is answered, the server lives, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.hostile_grammars import HELD, HOSTILE, Fields, body_of
from mlx_backend.api.errors import GrammarFailed
from server.grammars.compiler import MEMORY_BYTES
from server.grammars.process import GrammarState
from tests.engine_client import until
from tests.server_process import serving
from tests.serving import client_of, mock_engine, wait_until

JSON = {"Content-Type": "application/json"}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CODES = {"brackets, 3,000 in a text": "invalid_value"}
"""What the mock answers; else `unsupported_grammar`."""
ANSWERED = ("references, 1,000 in a row",)
"""Deep, and no deeper than the stack of a grammar's process."""


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the default for all grammars: what takes more than there is takes it sooner."""
    monkeypatch.setattr("server.service.model_instance.MEMORY_BYTES", MEMORY_BYTES // 4)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    engine = mock_engine(context=1 << 20)
    async with client_of(engine) as client:
        await until(lambda: engine.model_info is not None)
        client.timeout = httpx.Timeout(120)
        yield client


async def choose(client: httpx.AsyncClient, *texts: str) -> str:
    answer = await client.post(COMPLETIONS, json={"prompt": "?", "guided_choice": texts, "max_tokens": 40})
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


async def attack(client: httpx.AsyncClient, fields: Fields) -> httpx.Response:
    return await client.post(CHAT, content=body_of(fields), headers=JSON)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in ANSWERED])
async def test_it_is_refused_before_anything_is_generated(client: httpx.AsyncClient, name: str) -> None:
    answer = await attack(client, HOSTILE[name])
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, CODES.get(name, "unsupported_grammar"))
    assert await choose(client, "yes") == "yes"


@pytest.mark.parametrize("name", [*HELD, *ANSWERED])
async def test_what_is_large_and_can_be_held_is_held(client: httpx.AsyncClient, name: str) -> None:
    answer = await attack(client, {**HELD, **HOSTILE}[name])
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    written = choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    if "guided_choice" in (fields := {**HELD, **HOSTILE}[name]):
        assert written in fields["guided_choice"]
    else:
        json.loads(written)


@pytest.mark.usefixtures("little_memory")
async def test_others_are_served_while_one_compiles(client: httpx.AsyncClient) -> None:
    asked = asyncio.create_task(attack(client, HOSTILE["24 intersections of a terminal"]))
    for number in range(4):
        assert await choose(client, f"yes {number}") == f"yes {number}"
    assert not asked.done()
    assert (await asked).status_code == 400


async def test_a_client_that_leaves_takes_its_grammar_along(client: httpx.AsyncClient) -> None:
    async def num_abandoned() -> str:
        metrics = (await client.get("/metrics")).text
        return metrics.partition('pippin_grammars_total{model="mock",outcome="abandoned"} ')[2][:1]

    asked = asyncio.create_task(attack(client, HOSTILE["24 intersections of a terminal"]))
    await choose(client, "yes")  # by then the other is being compiled
    assert not asked.done()
    assert await num_abandoned() == "0"
    asked.cancel()
    await asyncio.wait({asked})
    while await num_abandoned() != "1":
        await asyncio.sleep(0.01)


# --- failures while an answer is written


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every grammar fails at an answer's third token."""
    whole = GrammarState.allowed
    asked: dict[GrammarState, int] = {}  # holds them: the id of one that is gone may be the next one's

    def allowed(state: GrammarState) -> bytes | None:
        asked[state] = asked.get(state, 0) + 1
        if asked[state] == 3:
            raise GrammarFailed("the grammar cannot be followed any further: it is too complex")
        return whole(state)

    monkeypatch.setattr(GrammarState, "allowed", allowed)


async def test_a_failure_is_an_error_of_its_request(client: httpx.AsyncClient, failing: None) -> None:
    plain = asyncio.create_task(client.post(COMPLETIONS, json={"prompt": "?", "max_tokens": 300, "ignore_eos": True}))
    answer = await client.post(COMPLETIONS, json={"prompt": "?", "guided_choice": ["yes", "no"]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "grammar_failed")
    assert "too complex" in error["message"]
    assert (await plain).json()["usage"]["completion_tokens"] == 300
    metrics = (await client.get("/metrics")).text
    assert 'pippin_errors_total{code="grammar_failed",status="400"} 1.0' in metrics
    assert 'pippin_sequences_total{end="failed",model="mock"} 1.0' in metrics


async def test_in_a_stream_a_failure_is_its_last_event(client: httpx.AsyncClient, failing: None) -> None:
    body = {"prompt": "?", "guided_choice": ["yes", "no"], "stream": True}
    answer = await client.post(COMPLETIONS, json=body)
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert json.loads(events[-1])["error"]["code"] == "grammar_failed"
    assert not any('"finish_reason":"stop"' in event for event in events)


async def test_failures_of_grammars_are_no_failures_of_the_device(client: httpx.AsyncClient, failing: None) -> None:
    for _ in range(8):
        assert (await client.post(COMPLETIONS, json={"prompt": "?", "guided_choice": ["yes"]})).status_code == 400
    assert (await client.get("/health")).status_code == 200


# --- a whole server


def test_the_server_lives_and_its_memory_is_back() -> None:
    limits = ("--grammars-memory-gb", "0.25", "--grammars-compile-s", "1")
    with serving("--backend", "mock", "--mock-context", "1000000", *limits) as (server, client):
        ask: dict[str, Any] = {"prompt": "?", "guided_choice": ["yes"]}
        assert client.post(COMPLETIONS, json=ask).status_code == 200
        sizes = []
        for _ in range(2):
            for fields in HOSTILE.values():
                assert client.post(CHAT, content=body_of(fields), headers=JSON).status_code in (200, 400)
            sizes.append(server.rss_bytes())
        assert client.post(COMPLETIONS, json=ask).status_code == 200
        assert client.get("/health").status_code == 200
        assert sizes[1] - sizes[0] < 32 << 20
        assert server.stop() == 0


def below(pid: int) -> set[int]:
    """Ids of all processes that a process has started, and that those have started."""
    children = {
        int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()
    }
    return children.union(*map(below, children))


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads /proc")
@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL", "unload"])
def test_the_processes_of_grammars_go_with_their_model(end: str) -> None:
    with serving("--backend", "mock") as (server, client):
        ask = {"prompt": "?", "guided_choice": ["yes"]}
        assert client.post(COMPLETIONS, json=ask).status_code == 200
        found = below(server.process.pid)
        assert len(found) == 2, "the host, and one grammar"
        if end == "unload":
            assert client.post("/admin/models/mock/unload").status_code == 200
        else:
            server.process.send_signal(signal.Signals[end])
            server.wait()
        wait_until(lambda: not any(map(is_alive, found)))
        if end == "unload":
            assert client.post(COMPLETIONS, json=ask).status_code == 200, "it is loaded again, and so is the grammar"
