"""The machine is kept awake while there is work, and a moment after; with a child that is made up, and a real one."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.appliance.awake import Awake, find_awake, start_caffeinate
from server.lifecycle import Lifecycle


class FakeChild:
    def __init__(self) -> None:
        self.code: int | None = None

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.code = -15

    def wait(self) -> int:
        return -15


class Started:
    def __init__(self) -> None:
        self.children: list[FakeChild] = []

    def __call__(self) -> FakeChild:
        self.children.append(FakeChild())
        return self.children[-1]

    @property
    def num_alive(self) -> int:
        return sum(child.poll() is None for child in self.children)


async def test_one_child_for_all_requests_and_it_ends_after_the_last() -> None:
    started, lifecycle = Started(), Lifecycle()
    lifecycle.watchers.append(Awake(started, grace_s=0.01).watch)
    assert started.children == []
    with lifecycle.work():
        with lifecycle.work():
            assert started.num_alive == 1
        assert started.num_alive == 1
    assert (len(started.children), started.num_alive) == (1, 1)
    while started.num_alive:
        await asyncio.sleep(0.001)
    with lifecycle.work():
        assert (len(started.children), started.num_alive) == (2, 1)


async def test_the_next_request_within_the_grace_takes_the_same_child() -> None:
    started, lifecycle = Started(), Lifecycle()
    awake = Awake(started, grace_s=1000)
    lifecycle.watchers.append(awake.watch)
    for _ in range(3):
        with lifecycle.work():
            pass
    assert (len(started.children), started.num_alive) == (1, 1)
    awake.close()
    awake.close()
    assert started.num_alive == 0


async def test_a_child_that_died_is_replaced_and_one_that_cannot_start_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    started, lifecycle = Started(), Lifecycle()
    lifecycle.watchers.append(Awake(started, grace_s=1000).watch)
    with lifecycle.work():
        started.children[0].code = 1
    with lifecycle.work():
        assert started.num_alive == 1

    def fail() -> FakeChild:
        raise OSError("no such thing")

    lifecycle.watchers[:] = [Awake(fail).watch]
    with lifecycle.work():
        assert "may fall asleep" in caplog.text


def test_only_on_macos_where_it_is_wanted_and_there(tmp_path: Path) -> None:
    there = tmp_path / "caffeinate"
    assert find_awake("auto", platform="darwin", command=there) is None
    there.touch()
    assert find_awake("auto", platform="darwin", command=there) is not None
    assert find_awake("never", platform="darwin", command=there) is None
    assert find_awake("auto", platform="linux", command=there) is None


def test_the_child_gets_the_processs_id_and_does_not_outlive_it(tmp_path: Path) -> None:
    """With a script in caffeinate's place that does what `-w` does."""
    script, told = tmp_path / "caffeinate", tmp_path / "told"
    script.write_text(
        f'#!/bin/sh\necho $$ "$@" > {told}.new; mv {told}.new {told}\nwhile kill -0 $3 2>&-; do sleep 0.02; done\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    code = (
        "import sys, time, pathlib; from server.appliance.awake import start_caffeinate\n"
        "start_caffeinate(pathlib.Path(sys.argv[1])); time.sleep(1000)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(script)])
    end = time.monotonic() + 120
    while not told.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    child, *arguments = told.read_text().split()
    assert arguments == ["-i", "-w", str(parent.pid)]
    parent.kill()
    parent.wait()
    while _is_alive(int(child)):
        assert time.monotonic() < end
        time.sleep(0.01)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_what_cannot_be_started_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        start_caffeinate(tmp_path / "none")
