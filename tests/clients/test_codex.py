"""The real codex against a mock with a script: eight tools in turn, an answer, and a prompt that stays in the cache.

The model that comes with Pippin cannot hold such an agent, whose first prompt has 30,000 of its tokens.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from server import pocket
from tests.clients.conftest import DEADLINE_S, ROOT
from tests.server_process import serving

CODEX = ROOT / "build" / "npm-clients" / "node_modules" / ".bin" / "codex"
NUM_STEPS = 8

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not there, which installs codex"),
]


def script() -> str:
    """Each result of a command leads to the next one, and the last to an answer; every step has its thought."""
    lines = []
    for step in range(1, NUM_STEPS + 1):
        call = {"name": "exec_command", "arguments": {"cmd": f"echo step-{step}-done"}}
        text = f"<think>\nStep {step}.\n</think>\n\nNow {step}.\n<tool_call>\n{json.dumps(call)}\n</tool_call>"
        lines.append({"match": f"step-{step - 1}-done" if step > 1 else "Run the steps", "text": text})
    lines.append({"match": f"step-{NUM_STEPS}-done", "text": "All steps ran."})
    return "\n".join(map(json.dumps, lines))


def test_codex_calls_its_tools_and_its_prompt_stays_warm(tmp_path: Path) -> None:
    assert CODEX.exists(), "codex is not there; `make clients` sets it up"
    answers, work = tmp_path / "answers.jsonl", tmp_path / "work"
    answers.write_text(script())
    work.mkdir()
    mock = ("--backend", "mock", "--mock-context", "200000", "--mock-script", str(answers))
    with serving(*mock, "--mock-tokenizer", str(pocket.folder())) as (server, client):
        url = str(client.base_url).rstrip("/")
        environment = {
            "PATH": f"{CODEX.parent}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "no_proxy": "127.0.0.1",
        }
        command = [str(ROOT / "examples" / "codex.sh"), url, "--sandbox", "danger-full-access", "Run the steps."]
        ran = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True, timeout=DEADLINE_S)
        assert ran.returncode == 0, ran.stderr
        server.stop()
        lines = [found for line in server.lines if (found := re.search(r" prompt=(\d+) cached=(\d+) ", line))]
    assert ran.stdout.strip() == "All steps ran."
    turns = [(int(found[1]), int(found[2])) for found in lines]
    assert len(turns) == NUM_STEPS + 1
    assert all(cached >= 0.95 * prompt for prompt, cached in turns[1:]), turns
