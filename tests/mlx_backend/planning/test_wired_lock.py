"""The lock of wired memory, with processes of their own: kill -9, two at once, pids that came back, broken files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlx_backend.planning.wired_lock import Record, WiredElsewhere, WiredLock, lock_file, look
from mlx_backend.planning.wiring import Holder

_HOLD = """
import sys
from pathlib import Path
from mlx_backend.planning.wired_lock import WiredElsewhere, WiredLock
for line in sys.stdin:  # each line is a time to try
    try:
        lock = WiredLock.acquire(sys.argv[2], path=Path(sys.argv[1]))
        print("held", flush=True)
    except WiredElsewhere as error:
        print(error, flush=True)
"""


@contextmanager
def process(path: Path, model: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path), model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        try:
            yield child
        finally:
            child.kill()


def try_in(child: subprocess.Popen[str]) -> str:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return child.stdout.readline().strip()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pippin" / "wired.lock"


def test_it_is_in_the_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert lock_file() == tmp_path / "pippin" / "wired.lock"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert lock_file() == Path.home() / ".local/state/pippin/wired.lock"


def test_one_process_holds_it_and_the_others_learn_which(path: Path) -> None:
    with process(path, "the-model") as child:
        assert try_in(child) == "held"
        with pytest.raises(WiredElsewhere, match=rf"process {child.pid} \(the-model, since 20") as refused:
            WiredLock.acquire("mine", path=path)
        assert refused.value.holder is not None and refused.value.holder.pid == child.pid
        record, is_held = look(path)
        assert (record.holder, is_held) == (refused.value.holder, True)


def test_kill_9_frees_it_and_leaves_its_name(path: Path) -> None:
    with process(path, "the-model") as child:
        assert try_in(child) == "held"
        child.kill()
        child.wait()
        record, is_held = look(path)
        assert not is_held
        assert record.holder is not None and (record.holder.pid, record.holder.model) == (child.pid, "the-model")
    WiredLock.acquire("mine", path=path).release()
    assert look(path) == (Record(None, record.first_at), False)


def test_of_two_at_once_one_gets_it(path: Path) -> None:
    with process(path, "a") as one, process(path, "b") as two:
        for child in (one, two):  # both start before either answers
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        answers = [child.stdout.readline().strip() for child in (one, two)]  # type: ignore[union-attr]
        assert sorted(answer == "held" for answer in answers) == [False, True]
        assert any("has wired memory" in answer for answer in answers)


def test_a_pid_that_is_another_process_by_now_holds_nothing(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps({"pid": os.getppid(), "model": "old", "since": 1000.0, "first_at": 900.0}))
    assert look(path) == (Record(Holder(os.getppid(), "old", 1000.0), 900.0), False)
    lock = WiredLock.acquire("mine", path=path)
    holder = look(path)[0].holder
    assert holder is not None and (holder.pid, holder.model) == (os.getpid(), "mine")
    lock.release()
    assert look(path)[0] == Record(None, 900.0)


def test_since_when_is_kept_until_panics_are_to_be_forgotten(path: Path) -> None:
    before = time.time()
    WiredLock.acquire("a", path=path).release()
    first = look(path)[0].first_at
    assert first is not None and before <= first <= time.time()
    WiredLock.acquire("b", path=path).release()
    assert look(path)[0].first_at == first
    WiredLock.acquire("b", path=path, forgets_panics=True).release()
    again = look(path)[0].first_at
    assert again is not None and again > first


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"pid": 1}',
        '{"pid": "x", "model": "m", "since": 1}',
        '{"pid": 1, "model": "m", "since": 1e400}',
        '{"pid": 1, "model": "m", "since": NaN, "first_at": 1}',
        '{"first_at": -1}',
        '{"first_at": []}',
        "[" * 5000,
        "x" * 20_000,
    ],
)
def test_a_broken_file_says_nothing_and_is_written_anew(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    assert look(path) == (Record(), False)
    lock = WiredLock.acquire("mine", path=path)
    holder = look(path)[0].holder
    assert holder is not None and holder.model == "mine"
    lock.release()


def test_looking_makes_nothing(path: Path) -> None:
    assert look(path) == (Record(), False)
    assert not path.parent.exists()


def test_a_place_that_cannot_be_written_to_is_an_error_of_the_system(path: Path, tmp_path: Path) -> None:
    path.parent.touch()  # a file, where the folder should be
    with pytest.raises(OSError, match="exists"):
        WiredLock.acquire("mine", path=path)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"[Ss]ymbolic"):
        WiredLock.acquire("mine", path=tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


def test_a_forked_child_does_not_keep_it(path: Path) -> None:
    lock = WiredLock.acquire("mine", path=path)
    out, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end)
        os.read(out, 1)
        os._exit(0)
    os.close(out)
    lock.release()
    try:
        assert not look(path)[1]
    finally:
        os.close(end)
        os.waitpid(pid, 0)
