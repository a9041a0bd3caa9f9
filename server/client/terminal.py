"""A conversation on a terminal: questions with a history, streamed answers, and their statistics.

Handles input and display. Server text reaches the terminal without control characters, which could manipulate it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TextIO

from rich.console import Console

from server.client.chat import AnswerStats, ChatError, Conversation

HELP = """\
/clear          forget the conversation; the system prompt stays
/system TEXT    set the system prompt; without TEXT it is shown, with - removed
/stats          what the answers have cost so far
/exit           end (so does Ctrl-D)
Ctrl-C stops an answer; what came of it stays in the conversation. A line that ends in \\ goes on."""
_HISTORY_LINES = 1000
_UNSAFE = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def talk(conversation: Conversation, *, keeps_history: bool = True, console: Console | None = None) -> None:
    """Read questions and print answers until the end of the input or /exit. Raises ChatError if it cannot begin."""
    out = console or Console(highlight=False, markup=False, emoji=False)
    model = conversation.choose_model()
    out.print(f"{model} at {conversation.url}; /help says what else there is", style="dim")
    with _history(keeps_history) as remember:
        while (line := _read(out)) is not None:
            remember()
            if line.startswith("/"):
                if line.split()[0] in ("/exit", "/quit"):
                    return
                _command(out, conversation, line)
            elif line.strip():
                _answer(out, conversation, line)


def answer_once(conversation: Conversation, question: str, out: TextIO) -> None:
    """Write only the answer, as it arrives. Raises ChatError."""
    conversation.choose_model()
    last = ""
    for piece in conversation.ask(question):
        if piece.kind == "content":
            out.write(clean(piece.text) if out.isatty() else piece.text)
            out.flush()
            last = piece.text
    if not last.endswith("\n"):
        out.write("\n")


def clean(text: str) -> str:
    """Return the text without terminal control characters."""
    return text.translate(_UNSAFE)


def describe(stats: AnswerStats) -> str:
    """Return one line with an answer's statistics."""
    parts = []
    if stats.ttft_s is not None:
        parts.append(f"{stats.ttft_s:.2f} s to the first token")
    if stats.tok_s is not None:
        parts.append(f"{stats.tok_s:,.1f} tok/s")
    if stats.num_prompt_tokens is not None:
        cached = f" ({stats.num_cached_tokens:,} cached)" if stats.num_cached_tokens else ""
        parts.append(f"{stats.num_prompt_tokens:,} tokens in{cached}, {stats.num_output_tokens or 0:,} out")
    return " · ".join(parts) or "nothing came"


def _read(out: Console) -> str | None:
    """Read a question or a command; None at the end of the input."""
    lines: list[str] = []
    while True:
        try:
            line = input("… " if lines else "> ")
        except EOFError:
            out.print()
            return None
        except KeyboardInterrupt:
            out.print("\n(Ctrl-D or /exit ends)", style="dim")
            lines.clear()
            continue
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            return "\n".join(lines)


def _answer(out: Console, conversation: Conversation, question: str) -> None:
    kind = ""
    try:
        for piece in conversation.ask(question):
            if kind == "reasoning" and piece.kind == "content":
                out.print("\n")
            kind = piece.kind
            out.out(clean(piece.text), end="", style="dim" if kind == "reasoning" else None, highlight=False)
    except KeyboardInterrupt:
        out.out(" (stopped)", end="", style="dim")
    except ChatError as error:
        out.print(f"\n{clean(str(error))}", style="red")
        return
    out.print()
    out.print(describe(conversation.answers[-1]), style="dim")


def _command(out: Console, conversation: Conversation, line: str) -> None:
    name, _, text = line.partition(" ")
    if name == "/clear":
        conversation.clear()
        out.print("forgotten", style="dim")
    elif name == "/system":
        _set_system(out, conversation, text.strip())
    elif name == "/stats":
        _show_stats(out, conversation)
    elif name == "/help":
        out.print(HELP, style="dim")
    else:
        out.print(f"there is no {clean(name)}; /help says what there is", style="red")


def _set_system(out: Console, conversation: Conversation, text: str) -> None:
    if text:
        conversation.system = None if text == "-" else text
    out.print(f"system prompt: {clean(conversation.system or 'none')}", style="dim")


def _show_stats(out: Console, conversation: Conversation) -> None:
    answers = conversation.answers
    told = [answer for answer in answers if answer.num_prompt_tokens is not None]
    tokens_in = sum(answer.num_prompt_tokens or 0 for answer in told)
    tokens_out = sum(answer.num_output_tokens or 0 for answer in told)
    cached = sum(answer.num_cached_tokens for answer in told)
    stopped = f", {len(answers) - len(told)} of them stopped and not counted" if len(told) < len(answers) else ""
    out.print(f"{conversation.model} at {conversation.url}", style="dim")
    out.print(f"{len(answers)} answers{stopped}; {len(conversation.turns) // 2} in the conversation", style="dim")
    out.print(f"{tokens_in:,} tokens in, {cached:,} of them cached; {tokens_out:,} out", style="dim")


# --- history


def history_file() -> Path:
    """Return the path of the history, in the user's state directory."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "pippin" / "chat_history"


class _Remember:
    """Called after each line. Saves the history to a file that only its owner can read; does nothing without one."""

    def __init__(self, readline: ModuleType | None, file: Path) -> None:
        self._readline, self._file = readline, file

    def __call__(self) -> None:
        if self._readline is None:
            return
        with contextlib.suppress(OSError):
            self._readline.write_history_file(self._file)
            self._file.chmod(0o600)


@contextlib.contextmanager
def _history(is_kept: bool) -> Iterator[_Remember]:
    file = history_file()
    try:
        import readline  # line editing and history for input()
    except ImportError:  # Python was built without it
        yield _Remember(None, file)
        return
    mask = os.umask(0o077)
    try:
        if is_kept:
            is_kept = _open(readline, file)
        yield _Remember(readline if is_kept else None, file)
    finally:
        os.umask(mask)
        readline.clear_history()


def _open(readline: ModuleType, file: Path) -> bool:
    """Read the saved history; return False if none can be kept."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o600))
        file.chmod(0o600)
        readline.set_history_length(_HISTORY_LINES)
        readline.read_history_file(file)
    except OSError as error:
        print(f"no history is kept: {error}", file=sys.stderr)
        return False
    return True
