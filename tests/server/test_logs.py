"""The console log: one line per record, on standard error, with libraries kept quiet."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator

import pytest

from server.log_writer import ConsoleLog
from server.logs import QUIET, LineFormatter, configure_logging, current_request_id, flush_logs


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in ("", *QUIET)}
    handlers = list(root.handlers)
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def logged(capsys: pytest.CaptureFixture[str]) -> str:
    flush_logs()
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_a_line_has_time_level_name_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    logging.getLogger("server.app").info("ready on port %d", 8080)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO  server\.app: ready on port 8080\n", logged(capsys))


@pytest.mark.parametrize(("level", "expected"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_is_the_least_shown(capsys: pytest.CaptureFixture[str], level: str, expected: int) -> None:
    configure_logging(level)
    log = logging.getLogger("server.app")
    for say in (log.debug, log.info, log.warning, log.error):
        say("x")
    assert logged(capsys).count("\n") == expected


def test_a_client_cannot_write_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    logging.getLogger("server").info("model %s", "a\n2026-01-01 INFO  server: all is well\r\x1b[2K\x85é\t!")
    line = logged(capsys)
    assert line.endswith("model a\\n2026-01-01 INFO  server: all is well\\r\\x1b[2K\\x85é\t!\n")
    assert line.count("\n") == 1


def test_a_traceback_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        logging.getLogger("server").exception("failed")
    lines = logged(capsys).splitlines()
    assert lines[0].endswith("server: failed")
    assert lines[-1] == "RuntimeError: broken"
    assert len(lines) > 2


@pytest.mark.parametrize("level", ["debug", "info", "error"])
def test_libraries_are_quiet(capsys: pytest.CaptureFixture[str], level: str) -> None:
    configure_logging(level)
    for name in QUIET:
        logging.getLogger(name).info("chatter")
    logging.getLogger("uvicorn.access").error("127.0.0.1 - GET /")
    assert logged(capsys) == ""


def test_libraries_are_never_louder_than_asked() -> None:
    configure_logging("error")
    assert logging.getLogger("httpx").level == logging.ERROR
    configure_logging("debug")
    assert logging.getLogger("httpx").level == logging.WARNING


def test_configuring_twice_logs_once_and_leaves_other_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    other = logging.NullHandler()
    root = logging.getLogger()
    root.addHandler(other)
    configure_logging("info")
    configure_logging("info")
    assert other in root.handlers
    assert [h.stream for h in root.handlers if isinstance(h, ConsoleLog)] == [sys.stderr]
    logging.getLogger("server").info("once")
    assert logged(capsys).count("once") == 1


def test_a_line_written_for_a_request_names_it_once() -> None:
    def line(message: str) -> str:
        return LineFormatter("%(message)s").format(logging.LogRecord("x", logging.INFO, "x", 1, message, (), None))

    assert line("outside") == "outside"
    token = current_request_id.set("abc7")
    try:
        assert line("inside") == "inside [abc7]"
        assert line("cmpl-abc7 is done") == "cmpl-abc7 is done"
    finally:
        current_request_id.reset(token)
