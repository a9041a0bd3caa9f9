"""How the server ends: with a real process, under load. Nothing that was admitted is lost, and nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server_process import DEADLINE_S, ServerProcess, serving

SLOW = ("--backend", "mock", "--mock-itl-s", "0.02")
LONG = {"prompt": "hello", "max_tokens": 60, "ignore_eos": True, "stream": True}


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=DEADLINE_S, limits=limits) as client:
        yield client


async def events(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[str]:
    """The data of every event of a streamed answer."""
    async with client.stream("POST", path, json=body) as response:
        lines = [line async for line in response.aiter_lines()]
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


async def until_admitted(client: httpx.AsyncClient, running: int, waiting: int) -> None:
    end = time.monotonic() + DEADLINE_S
    while True:
        (model,) = (await client.get("/health")).json()["models"]
        stats = model["stats"]
        rest = stats["num_waiting"] + stats["num_prefilling"]
        if stats["num_running"] == running and rest == waiting:
            return
        assert time.monotonic() < end, stats
        await asyncio.sleep(0.005)


def text_of(answer: list[str]) -> str:
    return "".join(json.loads(event)["choices"][0].get("text", "") for event in answer[:-1])


def finish_of(answer: list[str]) -> str:
    return str(json.loads(answer[-2])["choices"][0]["finish_reason"])


async def test_under_load_all_that_was_admitted_is_answered_and_who_comes_later_is_told() -> None:
    slow = ("--backend", "mock", "--mock-itl-s", "0.05")
    server = ServerProcess(*slow, "--scheduler-max-num-seqs", "20", "--stream-drain-s", "50")
    async with connected(server.url()) as client:
        asking = [asyncio.create_task(events(client, "/v1/completions", LONG)) for _ in range(40)]
        await until_admitted(client, running=20, waiting=20)
        server.process.terminate()
        while (health := await client.get("/health")).json()["status"] != "draining":
            pass
        assert health.status_code == 200
        async with connected(str(client.base_url)) as other:
            ready, refused = await other.get("/ready"), await other.post("/v1/completions", json=LONG)
            models = await other.get("/v1/models")
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_shutting_down")
        assert refused.headers["connection"] == "close"
        assert int(refused.headers["retry-after"]) > 0
        assert models.status_code == 200
        answers = await asyncio.gather(*asking)
        assert {answer[-1] for answer in answers} == {"[DONE]"}
        assert {(text_of(answer), finish_of(answer)) for answer in answers} == {(text_of(answers[0]), "length")}
    assert await asyncio.to_thread(server.wait) == 0
    assert not any("Traceback" in line or " ERROR " in line for line in server.lines), server.lines


async def test_what_is_late_gets_one_error_event_and_the_exit_is_0() -> None:
    server = ServerProcess(*SLOW, "--stream-drain-s", "0.2", "--scheduler-max-num-seqs", "2")
    async with connected(server.url()) as client:
        body = {**LONG, "max_tokens": 3000}
        asking = [asyncio.create_task(events(client, "/v1/completions", body)) for _ in range(4)]
        whole = asyncio.create_task(client.post("/v1/completions", json={**body, "stream": False}))
        await until_admitted(client, running=2, waiting=3)
        server.process.terminate()
        for streamed in await asyncio.gather(*asking):
            assert json.loads(streamed[-1])["error"]["code"] == "engine_closed"
            assert sum('"error"' in event for event in streamed) == 1
        answer = await whole
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_closed")
    assert await asyncio.to_thread(server.wait) == 0
    assert any("5 requests are not finished after 0.2 s" in line for line in server.lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_either_signal_lets_a_running_answer_end(number: int) -> None:
    with serving(*SLOW) as (server, client), client.stream("POST", "/v1/completions", json=LONG) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(number)
        told = list(lines)
        assert "data: [DONE]" in told
        assert sum('"text"' in line for line in told) > 40
        assert server.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(number: int) -> None:
    with serving(*SLOW, "--stream-drain-s", "50") as (server, client):
        body = {**LONG, "max_tokens": 3000}
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()  # kept: with it goes the connection
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            while httpx.get(f"{client.base_url}/health").json()["status"] != "draining":
                pass
            server.process.send_signal(number)
            assert server.wait() == -number


def test_with_wired_memory_a_second_signal_ends_the_drain_and_a_third_the_process() -> None:
    """As a simulated R1 has it wired. What is not finished fails, and the engine is closed, which unwires."""
    wired = ("--backend", "mock", "--simulate", "m3-ultra-512", "--as", "deepseek-r1", "--stream-drain-s", "1000")
    with serving(*wired) as (server, client):
        (model,) = client.get("/v1/models").json()["data"]
        assert model["pippin"]["memory"]["wired_bytes"] == model["pippin"]["weights_bytes"]
        with client.stream("POST", "/v1/completions", json={**LONG, "max_tokens": 3000}) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            while httpx.get(f"{client.base_url}/health").json()["status"] != "draining":
                pass
            server.process.send_signal(signal.SIGTERM)
            assert any("engine_closed" in line for line in lines)
        assert server.wait() == 0
    assert any("are not finished after a second signal" in line for line in server.lines)


def test_a_request_that_is_half_sent_and_one_that_is_idle_do_not_hold_it_up() -> None:
    with serving("--backend", "mock", "--stream-drain-s", "50") as (server, client):
        head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{"
        host, port = str(client.base_url.host), client.base_url.port or 0
        with socket_to(host, port) as half, socket_to(host, port):
            half.sendall(head)
            client.get("/health")
            assert server.stop() == 0
    assert not any("Traceback" in line or "are not finished after" in line for line in server.lines)


def socket_to(host: str, port: int) -> Any:
    import socket

    return socket.create_connection((host, port), timeout=DEADLINE_S)


@pytest.mark.mlx
async def test_with_a_model_and_a_folder_of_prefixes(tmp_path: Path) -> None:
    folder = tmp_path / "prefixes"
    options = ("--scheduler-max-num-seqs", "15", "--stream-drain-s", "55", "--prefix-cache-dir", str(folder))
    server = ServerProcess(*options, "--prefix-cache-chunk-tokens", "4")
    async with connected(server.url()) as client:
        question = {"messages": [{"role": "user", "content": "How many r's are in strawberry?"}], "temperature": 0}
        body = {**question, "stream": True, "max_tokens": 10, "ignore_eos": True}
        asking = [asyncio.create_task(events(client, "/v1/chat/completions", body)) for _ in range(60)]
        end = time.monotonic() + DEADLINE_S
        while True:  # a stream has begun when it has headers: count what the server has
            stats = (await client.get("/health")).json()["models"][0]["stats"]
            if stats["num_waiting"] + stats["num_prefilling"] + stats["num_running"] + stats["num_finished"] == 60:
                break
            assert time.monotonic() < end
            await asyncio.sleep(0.005)
        assert stats["num_waiting"] + stats["num_prefilling"] > 0
        server.process.terminate()
        answers = await asyncio.gather(*asking)
    assert await asyncio.to_thread(server.wait) == 0
    assert {answer[-1] for answer in answers} == {"[DONE]"}
    assert {finish_of(answer) for answer in answers} == {"length"}
    blocks = list(folder.glob("*/*.kv"))
    assert blocks
    assert [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".kv", ".json", "")] == []
    with serving(*options, "--prefix-cache-chunk-tokens", "4") as (_, again):
        usage = again.post("/v1/chat/completions", json={**question, "max_tokens": 1}).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] > 0


def test_a_hang_up_takes_the_settings_anew_and_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "pippin.yaml"
    file.write_text("log_level: info\nsecurity: {max_body_bytes: 100000}\n")
    with serving("--backend", "mock", "--config", str(file)) as (server, client):

        def reloaded(text: str, told: str) -> None:
            file.write_text(text)
            seen = len(server.lines)
            server.process.send_signal(signal.SIGHUP)
            end = time.monotonic() + DEADLINE_S
            while not any(told in line for line in server.lines[seen:]):
                assert time.monotonic() < end, server.lines
                time.sleep(0.005)

        def status() -> int:
            return client.post("/v1/completions", json={"prompt": "x" * 2000, "max_tokens": 1}).status_code

        assert status() == 200
        reloaded("security: {max_body_bytes: 1000}\n", "changed: security.max_body_bytes")
        assert status() == 413
        reloaded("security: {max_body_bytes: -5}\n", "nothing is reloaded: file")
        assert status() == 413
        reloaded(
            "security: {max_body_bytes: 100000}\nscheduler: {max_waiting: 5}\n", "a restart: scheduler.max_waiting"
        )
        assert status() == 200
        reloaded("log_level: debug\n", "changed: log_level")
        assert server.stop() == 0


def test_the_log_goes_on_in_a_new_file_when_it_is_rotated_away(tmp_path: Path) -> None:
    file = tmp_path / "pippin.log"
    server = ServerProcess("--backend", "mock", "--log-file", str(file))
    try:
        end = time.monotonic() + DEADLINE_S
        while not file.is_file() or not (found := re.search(r" serving .* on (http://[\d.:]+):", file.read_text())):
            assert time.monotonic() < end
            time.sleep(0.01)
        os.rename(file, tmp_path / "pippin.log.0")
        httpx.post(f"{found[1]}/v1/completions", json={"prompt": "hi", "max_tokens": 1})
    finally:
        assert server.stop() == 0
    assert "finish=" in file.read_text()
    assert server.lines == []
