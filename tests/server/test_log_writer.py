"""Logs that cannot be written: nobody waits, nobody fails, and what can be said is said."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from server.log_writer import BackgroundLog, ConsoleLog, FileLog
from tests.server_process import serving

ASK = {"prompt": "hello", "max_tokens": 4}


def record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("pippin.test", logging.INFO, "x", 1, message, arguments, None)


def say(log: BackgroundLog, *messages: str) -> None:
    for message in messages:
        log.handle(record(message))
    log.flush()


def test_lines_are_in_order_whoever_writes_them(tmp_path: Path) -> None:
    log = FileLog(tmp_path / "log")
    threads = [
        threading.Thread(target=lambda name=name: [log.handle(record(f"{name} {i}")) for i in range(500)])
        for name in "abc"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    lines = (tmp_path / "log").read_text().splitlines()
    for name in "abc":
        assert [line for line in lines if line.startswith(name)] == [f"{name} {i}" for i in range(500)]


def test_a_file_that_is_moved_away_is_begun_anew(tmp_path: Path) -> None:
    log = FileLog(tmp_path / "log")
    say(log, "one")
    (tmp_path / "log").rename(tmp_path / "log.1")
    say(log, "two")
    log.close()
    assert (tmp_path / "log.1").read_text() == "one\n"
    assert (tmp_path / "log").read_text() == "two\n"


def test_a_folder_that_is_lost_and_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = FileLog(folder / "log")
    say(log, "one")
    shutil.rmtree(folder)
    say(log, "two")
    say(log, "three")
    folder.mkdir()
    say(log, "four")
    log.close()
    assert (folder / "log").read_text() == "four\n"
    told = capsys.readouterr().err
    assert told.count("cannot be written (No such file or directory); its lines are here\n") == 1
    assert told.endswith("two\nthree\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk at hand")
def test_a_full_disk_costs_one_line_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    log = FileLog(Path("/dev/full"))
    for number in range(100):
        say(log, f"line {number}")
    log.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "the log file /dev/full cannot be written (No space left on device); its lines are here"
    assert lines[1:] == [f"line {number}" for number in range(100)]


def test_a_fifo_that_nobody_reads_is_refused_at_start_and_not_waited_for_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device"):
        FileLog(path)
    path.unlink()
    log = FileLog(path)
    path.unlink()
    os.mkfifo(path)
    say(log, "one")
    log.close()
    assert capsys.readouterr().err.endswith("one\n")


def test_a_pipe_that_nobody_empties_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.log_writer._MOST_CHARS", 100_000)
    monkeypatch.setattr("server.log_writer._FLUSH_S", 0.05)
    read_end, write_end = os.pipe()
    with open(write_end, "w") as stream, open(read_end) as reader:
        monkeypatch.setattr("sys.stderr", stream)
        log = ConsoleLog()
        for number in range(10_000):
            log.handle(record(f"{number:099d}"))  # a megabyte, of which the pipe takes 64 KB
        log.flush()
        found: list[str] = []
        emptying = threading.Thread(target=lambda: found.extend(reader))
        emptying.start()
        monkeypatch.setattr("server.log_writer._FLUSH_S", 60.0)
        log.close()
        stream.close()
        emptying.join()
    assert [int(line) for line in found[:100]] == list(range(100))
    assert found[-1].endswith("lines could not be written in time\n")
    assert len(found) < 10_000


def test_a_reader_that_has_gone_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "wb", buffering=0) as raw:
        stream = os.fdopen(os.dup(raw.fileno()), "w")
        monkeypatch.setattr("sys.stderr", stream)
        say(ConsoleLog(), "one", "two")
        with pytest.raises(BrokenPipeError):
            stream.close()


def test_a_mistake_in_a_log_call_is_a_line(tmp_path: Path) -> None:
    log = FileLog(tmp_path / "log")
    log.handle(record("%d", "x"))
    log.close()
    assert (tmp_path / "log").read_text() == "a line of pippin.test could not be formatted (TypeError)\n"


def test_a_server_that_has_lost_its_log_serves_reloads_unloads_and_ends(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    config = tmp_path / "config.yaml"
    config.write_text("models:\n  a: {model: mock}\nbackend: mock\n")
    with serving("--config", str(config), "--log-file", str(folder / "log"), log=folder / "log") as (server, client):
        assert client.post("/v1/completions", json=ASK).status_code == 200
        shutil.rmtree(folder)
        for _ in range(3):
            assert client.post("/v1/completions", json=ASK).status_code == 200
        server.process.send_signal(signal.SIGHUP)
        while not any("reloaded: " in line for line in server.lines):
            assert server.process.poll() is None
            time.sleep(0.01)
        assert client.post("/admin/models/a/unload").status_code == 200, "no lease is left"
        answer: httpx.Response = client.post("/v1/completions", json=ASK)
        assert answer.status_code == 200
        assert server.stop() == 0
    assert sum("cannot be written" in line for line in server.lines) == 1
