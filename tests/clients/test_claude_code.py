"""Claude Code, with an environment and a home of its own, against the mock: it calls a tool and reads the result."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.clients.running import ROOT, called, environment, of_npm, run, scripted, url_of

CALL = called("Bash", {"command": "cat note.txt", "description": "Show the note"}, "I read it.\n")
ANSWERS = [("marker-42", "The note says marker-42."), (".", f"<think>\nI look.\n</think>\n\n{CALL}")]

pytestmark = [pytest.mark.mlx, pytest.mark.clients, of_npm("@anthropic-ai/claude-code")]


def ask(command: list[str], folder: Path, env: dict[str, str]) -> list[Any]:
    """The events that it prints."""
    work = folder / "work"
    work.mkdir()
    (work / "note.txt").write_text("marker-42\n", encoding="utf-8")
    options = ("-p", "Read the note", "--allowedTools", "Bash", "--output-format", "stream-json", "--verbose")
    return list(map(json.loads, run([*command, *options], env=env, cwd=work).splitlines()))


def test_a_tool_is_called_and_its_result_read(tmp_path: Path, way_out: socket.socket) -> None:
    with scripted(tmp_path, ANSWERS, "--aliases", "claude-*") as (_, client):
        command = [str(ROOT / "examples" / "claude_code.sh"), url_of(client)]
        events = ask(command, tmp_path, environment(tmp_path, way_out))
    said: list[dict[str, Any]] = [event["message"] for event in events if event["type"] == "assistant"]
    assert [block["type"] for message in said for block in message["content"]] == [
        "thinking",
        "text",
        "tool_use",
        "text",
    ]
    assert (events[-1]["result"], events[-1]["num_turns"], events[-1]["is_error"]) == (ANSWERS[0][1], 2, False)
    # all but what is new of the second turn comes from the prefix cache
    last = said[-1]["usage"]
    assert last["cache_read_input_tokens"] / (last["input_tokens"] + last["cache_read_input_tokens"]) > 0.95


def test_it_is_launched(tmp_path: Path, way_out: socket.socket) -> None:
    with scripted(tmp_path, ANSWERS) as (_, client):
        command = ["pippin", "launch", "claude", "--url", url_of(client), "--"]
        events = ask(command, tmp_path, environment(tmp_path, way_out))
    assert (events[-1]["result"], events[-1]["is_error"]) == (ANSWERS[0][1], False)
