"""`pippin batch` as it is typed: its model in the process or a running server, its counts, its exit codes."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.batches.progress import Progress
from server.cli import main
from server.commands import batch_progress
from tests.server.batches.made import jsonl, request
from tests.serving import LiveServer, mock_engine, serve

LINES = (
    request("chat", "/v1/chat/completions", messages=[{"role": "user", "content": "hello"}], max_tokens=4),
    request("completion", "/v1/completions", prompt="hello", max_tokens=4),
    request("response", "/v1/responses", input="hello", max_output_tokens=16),
    request("message", "/v1/messages", messages=[{"role": "user", "content": "hello"}], max_tokens=4),
    request("vector", "/v1/embeddings", input="hello"),
    request("other model", "/v1/completions", prompt="hello", model="gpt-9"),
    b"{",
)
STATUSES = {"chat": 200, "completion": 200, "response": 200, "message": 200, "other model": 404}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with serve(mock_engine()) as live:
        yield live


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setattr("server.logs.configure_logging", lambda *_, **__: None)  # it is pytest's here
    monkeypatch.setattr("server.commands.batch._POLL_S", 0.001)
    (tmp_path / "in.jsonl").write_bytes(jsonl(*LINES))
    return str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["batch", *arguments])
    return int(ended.value.code or 0)


def answers(out: str) -> dict[str | None, Any]:
    records = [json.loads(line) for line in Path(out).read_bytes().splitlines()]
    assert len(records) == len(LINES)
    return {record["custom_id"]: record for record in records}


@pytest.mark.parametrize("where", ["in process", "a server"])
def test_every_api_is_answered(
    server: LiveServer, files: tuple[str, str], where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--", "--backend", "mock") if where == "in process" else ("--url", server.url)
    assert run(*files, *more) == 0
    told = capsys.readouterr().err
    assert "7 lines answered, " in told
    found = answers(files[1])
    statuses = {name: (found[name]["response"] or {}).get("status_code") for name in STATUSES}
    assert statuses == STATUSES
    assert found[None]["error"]["line"] == 7
    assert found["response"]["response"]["body"]["store"] is False
    assert found["completion"]["response"]["request_id"]
    assert run(*files, *more) == 0
    assert "loading" not in capsys.readouterr().err  # nothing is left to do
    answers(files[1])


def test_a_server_that_is_not_there_ends_with_1(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*files, "--url", "http://127.0.0.1:9", "--give-up", "1") == 1
    assert "to resume, run the same command again" in capsys.readouterr().err


def test_a_model_that_is_not_there_ends_with_1(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*files, "--", "/nowhere/model") == 1
    assert "folder /nowhere/model does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--key", "x"), "--key applies only with --url"),
        (("--url", "http://127.0.0.1:9", "--", "pocket"), "'pocket' applies only to a model in this process"),
        (("--url", "ftp://x"), "is no URL of a server"),
        (("--url", "http://127.0.0.1:9", "--key", "@/nowhere/key"), "No such file"),
        (("--", "--no-such-flag"), "no-such-flag"),
    ],
)
def test_options_that_do_not_go_together(
    files: tuple[str, str], more: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*files, *more) == 2
    assert words in capsys.readouterr().err


def test_a_file_that_is_none_is_refused_before_a_model_is_loaded(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(files[1]).write_text("my notes\n")
    assert run(*files, "--", "--backend", "mock") == 1
    told = capsys.readouterr().err
    assert "line 1 of out.jsonl is not an answer of a batch" in told
    assert "loading" not in told
    assert Path(files[1]).read_text() == "my notes\n"


# --- what is shown


def progress() -> Progress:
    found = Progress(200, num_done=50)
    found.begin(time.monotonic() - 10)
    for n in range(50):
        found.add(time.monotonic(), is_success=n > 0, usage={"prompt_tokens": 10, "completion_tokens": 1})
    return found


def test_a_line_says_what_is_done_and_what_is_left() -> None:
    told = batch_progress.describe(progress(), time.monotonic())
    assert told.startswith("100 of 200 lines (50%), 1 failed, ")
    assert "lines/s" in told
    assert told.endswith(" left")
    waiting = progress()
    waiting.waits_for = "status 503: busy"
    assert batch_progress.describe(waiting, time.monotonic()).endswith("waiting for the server (status 503: busy)")


def test_the_summary_has_tokens() -> None:
    told = batch_progress.summary(progress(), Path("out"), 61.0)
    assert told == (
        "out: 100 lines answered, 1 of them failed\n"
        "this run: 1 min 1 s, 500 prompt tokens (0% cached), 50 output tokens"
    )


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch_progress, "_TELL_S", 0.005)
    monkeypatch.setattr(batch_progress, "_DRAW_S", 0.005)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    asked = threading.Event()
    update, describe = batch_progress._update, batch_progress.describe

    def updated(*arguments: Any) -> None:
        update(*arguments)
        if arguments[2]:
            asked.set()

    def described(*arguments: Any) -> str:
        asked.set()
        return describe(*arguments)

    monkeypatch.setattr(batch_progress, "_update", updated)
    monkeypatch.setattr(batch_progress, "describe", described)
    with batch_progress.shown("in.jsonl") as begin:
        begin(progress())
        assert asked.wait(60)
    told = capsys.readouterr().err
    assert ("in.jsonl: 100 of 200 lines (50%)" in told) == (not is_terminal)
