"""Claude Code, with an environment and a home of its own, against the mock: it calls a tool and reads the result."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import CLIENTS, DEADLINE_S, ROOT
from tests.server_process import serving

CLAUDE = CLIENTS.parent / "node" / "node_modules" / ".bin" / "claude"
CALL = {"name": "Bash", "arguments": {"command": "cat note.txt", "description": "Show the note"}}
SCRIPT = [
    {"match": "marker-42", "text": "The note says marker-42."},
    {"match": ".", "text": f"<think>\nI look.\n</think>\n\nI read it.\n<tool_call>\n{json.dumps(CALL)}\n</tool_call>"},
]

pytestmark = [
    pytest.mark.mlx,
    pytest.mark.clients,
    pytest.mark.skipif(not CLAUDE.exists(), reason="Claude Code is not there; `make clients` sets it up where npm is"),
]


def test_a_tool_is_called_and_its_result_read(tmp_path: Path, way_out: socket.socket) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text("".join(json.dumps(line) + "\n" for line in SCRIPT), encoding="utf-8")
    work = tmp_path / "work"
    work.mkdir()
    (work / "note.txt").write_text("marker-42\n", encoding="utf-8")
    options = ["--backend", "mock", "--mock-script", str(script), "--mock-context", "200000", "--aliases", "claude-*"]
    with serving(*options, "--mock-tokenizer", str(ROOT / "server" / "pocket")) as (_, client):
        ran = subprocess.run(
            [
                str(CLAUDE),
                "-p",
                "Read the note",
                "--allowedTools",
                "Bash",
                "--output-format",
                "stream-json",
                "--verbose",
            ],
            env=environment(tmp_path, str(client.base_url).rstrip("/"), way_out),
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
    assert ran.returncode == 0, ran.stderr + ran.stdout
    events = [json.loads(line) for line in ran.stdout.splitlines()]
    said: list[dict[str, Any]] = [event["message"] for event in events if event["type"] == "assistant"]
    assert [block["type"] for message in said for block in message["content"]] == [
        "thinking",
        "text",
        "tool_use",
        "text",
    ]
    assert (events[-1]["result"], events[-1]["num_turns"], events[-1]["is_error"]) == (SCRIPT[0]["text"], 2, False)
    # all but what is new of the second turn comes from the prefix cache
    last = said[-1]["usage"]
    assert last["cache_read_input_tokens"] / (last["input_tokens"] + last["cache_read_input_tokens"]) > 0.95


def environment(home: Path, url: str, way_out: socket.socket) -> dict[str, str]:
    """Nothing of the user's, and a proxy for whatever is not this server."""
    proxy = f"http://127.0.0.1:{way_out.getsockname()[1]}"
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": "none",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        **{name: proxy for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")},
        "no_proxy": "127.0.0.1",
        "NO_PROXY": "127.0.0.1",
    }
