"""The drain, the counting of work and the reload, without a process."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import pty
import subprocess
import sys

import httpx
import pytest

from mlx_backend.api.interface import SchedulerConfig
from server.app import create_app
from server.config import Config, ConfigError, SecurityConfig
from server.lifecycle import Lifecycle, ShuttingDown
from server.reloading import Reloading
from tests.fake_engine import HANG, FakeEngine, spell
from tests.server_process import DEADLINE_S
from tests.serving import build_registry


async def test_work_is_counted_and_refused_while_draining() -> None:
    lifecycle, told = Lifecycle(), list[bool]()
    lifecycle.watchers.append(told.append)
    with lifecycle.work(), lifecycle.work():
        assert lifecycle.num_open == 2
        lifecycle.begin_drain(15)
        lifecycle.begin_drain(2)
        assert lifecycle.signal_number == 15
        with pytest.raises(ShuttingDown), lifecycle.work():
            pass
        assert not await lifecycle.drained(0)
    assert await lifecycle.drained(0)
    assert told == [True, False]


async def test_to_be_hurried_ends_the_wait_and_not_the_work() -> None:
    lifecycle = Lifecycle()
    with lifecycle.work():
        lifecycle.begin_drain(15)
        waiting = asyncio.create_task(lifecycle.drained(DEADLINE_S))
        await asyncio.sleep(0)
        assert not waiting.done()
        lifecycle.hurry()
        assert not await asyncio.wait_for(waiting, DEADLINE_S / 2)
        assert lifecycle.num_open == 1


async def test_a_request_that_failed_is_over_too_and_a_bad_watcher_harms_nobody() -> None:
    lifecycle = Lifecycle()
    lifecycle.watchers.append(lambda is_busy: 1 // 0)  # type: ignore[arg-type]
    with pytest.raises(KeyError), lifecycle.work():
        raise KeyError
    assert await lifecycle.idle(0)


async def test_an_app_that_drains_finishes_what_it_has_reads_on_and_takes_nothing_new() -> None:
    wait = asyncio.Event()
    engine, lifecycle = FakeEngine([*map(tuple, [spell("ab", reason=None)]), wait, spell("cd")]), Lifecycle()
    app = create_app(Config(), build_registry(engine), lifecycle)
    ask = {"prompt": "hi", "max_tokens": 4}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        running = asyncio.create_task(client.post("/v1/completions", json=ask))
        while lifecycle.num_open == 0:
            await asyncio.sleep(0)
        lifecycle.begin_drain()
        refused = await client.post("/v1/completions", json=ask)
        tokenized = await client.post("/tokenize", json={"prompt": "hi"})
        health, ready = await client.get("/health"), await client.get("/ready")
        assert (await client.get("/v1/models")).status_code == 200
        wait.set()
        answer = await running
    assert answer.json()["choices"][0]["text"] == "abcd"
    for each in (refused, tokenized):
        assert (each.status_code, each.json()["error"]["code"]) == (503, "server_shutting_down")
        assert each.json()["error"]["type"] == "server_error"
        assert each.headers["connection"] == "close"
        assert "retry-after" in each.headers
        assert "x-request-id" in each.headers
    assert (health.status_code, ready.status_code) == (200, 503)
    assert health.json()["status"] == ready.json()["status"] == "draining"
    assert health.json()["detail"] == "1 requests are being finished"


async def test_a_client_that_leaves_is_work_no_more() -> None:
    lifecycle = Lifecycle()
    app = create_app(Config(), build_registry(FakeEngine([HANG])), lifecycle)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        asking = asyncio.create_task(client.post("/v1/completions", json={"prompt": "hi"}))
        while lifecycle.num_open == 0:
            await asyncio.sleep(0)
        asking.cancel()
        assert await lifecycle.idle(DEADLINE_S)


# --- reloading


def test_each_part_says_what_it_takes_and_the_rest_needs_a_restart(caplog: pytest.LogCaptureFixture) -> None:
    now = Config()
    taken: list[str] = []
    reloading = Reloading(now, lambda: now)
    reloading.register("log level", lambda config: taken.append(config.log_level), ["log_level"])
    reloading.register("keys", lambda config: taken.append("keys"))
    with caplog.at_level(logging.INFO):
        reloading.reload()
        assert "reloaded: log level, keys; changed: nothing" in caplog.text
        now = Config(log_level="debug", scheduler=SchedulerConfig(max_waiting=3))
        reloading.reload()
    assert taken == ["info", "keys", "debug", "keys"]
    assert "not taken before a restart: scheduler.max_waiting" in caplog.text
    assert "changed: log_level" in caplog.text


def test_what_is_broken_stays_as_it_was_and_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    now = Config()
    failures = [RuntimeError("line 3 is no key"), None]

    def apply(config: Config) -> None:
        if failure := failures.pop(0):
            raise failure

    def reread() -> Config:
        if isinstance(now, ConfigError):
            raise now
        return now

    reloading = Reloading(now, reread)
    reloading.register("limits", apply, ["security.max_headers"])
    with caplog.at_level(logging.INFO):
        now = dataclasses.replace(now, security=SecurityConfig(max_headers=7))
        reloading.reload()
        assert "not reloaded: limits: line 3 is no key" in caplog.text
        assert "not taken before a restart: security.max_headers" in caplog.text
        reloading.reload()
        assert "reloaded: limits; changed: security.max_headers" in caplog.text
        now = ConfigError("file x: no")  # type: ignore[assignment]
        reloading.reload()
    assert "nothing is reloaded: file x: no" in caplog.text


# --- a terminal


def test_when_its_terminal_is_closed_the_server_ends() -> None:
    """A hang-up is a reload for a service, and the end for who has a window that is gone."""
    terminal, its_end = pty.openpty()
    serve = "fcntl.ioctl(2, termios.TIOCSCTTY, 0); cli.main(['serve', '--backend', 'mock', '--port', '0'])"
    command = [sys.executable, "-c", f"import fcntl, termios; from server import cli; {serve}"]
    process = subprocess.Popen(command, stdin=its_end, stderr=its_end, start_new_session=True)
    os.close(its_end)
    said = b""
    while b"prefix cache" not in said:
        said += os.read(terminal, 10_000)
    os.close(terminal)
    assert process.wait(DEADLINE_S) == 0


def test_a_drain_that_hangs_is_ended_by_force() -> None:
    code = "import time; from server import lifecycle; lifecycle._end_after(0.05); time.sleep(1000)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 1
    assert "ended by force" in done.stderr
