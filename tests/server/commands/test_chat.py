"""`pippin chat` as a process: in a pseudo-terminal, as a person uses it, and through pipes."""

from __future__ import annotations

import os
import pty
import re
import select
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.api.interface import MockConfig
from tests.serving import DEADLINE_S, LiveServer, mock_engine, serve, wait_until

MAIN = "import sys; sys.argv[0] = 'pippin'; from server.cli import main; main()"
ON_A_TERMINAL = f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); {MAIN}"


@pytest.fixture
def server() -> Iterator[LiveServer]:
    with serve(mock_engine(itl_s=0.02)) as live:
        yield live


def slow_down(server: LiveServer) -> None:
    """From now on answers take a minute: a machine that is busy still finds them unfinished."""
    engine: Any = server.engine
    engine._runner._pace = MockConfig(itl_s=0.3)


def environment(state: Path) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("PIPPIN_")}
    return {**mine, "XDG_STATE_HOME": str(state), "TERM": "xterm", "COLUMNS": "200", "LINES": "50"}


class Terminal:
    """A process on a terminal of its own, as `pippin chat`."""

    def __init__(self, state: Path, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_A_TERMINAL, "chat", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=environment(state),
        )
        os.close(slave)
        self.text = ""

    def expect(self, pattern: str) -> str:
        """Read until it comes; what came until then, which is not looked at again."""
        deadline = time.monotonic() + DEADLINE_S
        while (found := re.search(pattern, self.text, re.DOTALL)) is None:
            assert time.monotonic() < deadline, self.text
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self._master, 65536).decode("utf-8", "replace")
                except OSError:  # the other end is closed
                    raise AssertionError(f"it has ended: {self.text}") from None
        before, self.text = self.text[: found.end()], self.text[found.end() :]
        return before

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> int:
        """The exit code."""
        return self.process.wait(DEADLINE_S)

    def end(self) -> None:
        """Leave nothing behind, whatever has happened."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


Open = Callable[..., Terminal]


@pytest.fixture
def on_terminal(tmp_path: Path) -> Iterator[Open]:
    opened: list[Terminal] = []

    def open_terminal(*arguments: str) -> Terminal:
        opened.append(Terminal(tmp_path, *arguments))
        return opened[-1]

    yield open_terminal
    for terminal in opened:
        terminal.end()


def test_a_conversation_on_a_terminal(server: LiveServer, tmp_path: Path, on_terminal: Open) -> None:
    terminal = on_terminal("--url", f"{server.url}/v1")
    terminal.expect(rf"mock at {server.url}; /help.*> ")
    terminal.type("hello\r")
    terminal.expect(r"s to the first token .* tok/s .* (\d+) tokens in.*, \d+ out.*> ")
    slow_down(server)
    terminal.type("\x1b[A\x1b[A")  # the line before, out of the history
    terminal.expect("hello")
    terminal.type(", and a question that is answered at length\r")
    terminal.expect(r"length\r\n.*[a-z]{3} ")  # some of the answer
    terminal.type("\x03")  # stops the answer, not the program
    terminal.expect(r"\(stopped\).*> ")
    server.wait_until_idle()
    assert server.engine.stats().num_aborted == 1
    terminal.type("half a line\x03")
    terminal.expect(r"Ctrl-D or /exit ends.*> ")
    terminal.type("/stats\r")
    terminal.expect(r"2 answers, 1 of them stopped and not counted; 2 in the conversation.*> ")
    terminal.type("/clear\r")
    terminal.expect(r"forgotten.*> ")
    terminal.type("/exit\r")
    assert terminal.close() == 0
    history = tmp_path / "pippin" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700
    lines = history.read_text().splitlines()
    assert [line for line in lines if line.startswith("hello")] == [
        "hello",
        "hello, and a question that is answered at length",
    ]


def test_the_next_time_it_is_still_known_and_need_not_be_kept(
    server: LiveServer, tmp_path: Path, on_terminal: Open
) -> None:
    history = tmp_path / "pippin" / "chat_history"
    history.parent.mkdir()
    history.write_text("asked long ago\n")
    history.chmod(0o644)
    terminal = on_terminal("--url", server.url)
    terminal.expect("> ")
    terminal.type("\x1b[A")
    terminal.expect("asked long ago")
    terminal.type("\x15\x04")  # that line away, and the end of the input
    assert terminal.close() == 0
    assert stat.S_IMODE(history.stat().st_mode) == 0o600  # closed to others
    history.unlink()
    terminal = on_terminal("--url", server.url, "--no-history")
    terminal.expect("> ")
    terminal.type("/stats\r")
    terminal.expect(r"0 answers.*> ")
    terminal.type("\x04")
    assert terminal.close() == 0
    assert not history.exists()


def piped(state: Path, question: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MAIN, "chat", *arguments]
    env = environment(state)
    return subprocess.run(command, input=question, capture_output=True, text=True, timeout=DEADLINE_S, env=env)


def test_a_pipe_gets_the_answer_and_nothing_else(server: LiveServer, tmp_path: Path) -> None:
    done = piped(tmp_path, "hello\n", "--url", server.url, "--model", "mock")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n") and len(done.stdout.split()) >= 3
    assert "tok/s" not in done.stdout and "\x1b" not in done.stdout
    assert not (tmp_path / "pippin").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--model", "another"), 1, "does not serve another; it serves: mock"),
        (("--url", "http://127.0.0.1:9"), 1, "http://127.0.0.1:9 cannot be reached: "),
        (("--url", "ftp://x"), 2, "'ftp://x' is no URL of a server"),
        (("--key", "@/nowhere/key"), 2, "/nowhere/key"),
    ],
)
def test_what_goes_wrong_is_one_line(
    server: LiveServer, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = piped(tmp_path, "hello", "--url", server.url, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("pippin: ") and says in done.stderr and done.stderr.count("\n") == 1


def test_who_has_read_enough_may_close_the_pipe(server: LiveServer, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAIN, "chat", "--url", server.url]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(tmp_path)
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"hello")
        process.stdin.close()
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(DEADLINE_S) == 0
    wait_until(lambda: server.engine.stats().num_aborted + server.engine.stats().num_finished == 1)
