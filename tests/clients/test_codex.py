"""The real codex against a mock with a script: eight tools in turn, an answer, and a prompt that stays in the cache.

The model that comes with Pippin cannot hold such an agent, whose first prompt has 30,000 of its tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.running import ROOT, called, environment, of_npm, run, scripted, url_of

NUM_STEPS = 8
EXAMPLES = ROOT / "examples"
TASK = ("--sandbox", "danger-full-access", "Run the steps.")

pytestmark = [pytest.mark.clients, of_npm("@openai/codex")]


def answers() -> Iterator[tuple[str, str]]:
    """Each result of a command leads to the next one, and the last to an answer; every step has its thought."""
    for step in range(1, NUM_STEPS + 1):
        match = f"step-{step - 1}-done" if step > 1 else "Run the steps"
        thought = f"<think>\nStep {step}.\n</think>\n\nNow {step}.\n"
        yield match, called("exec_command", {"cmd": f"echo step-{step}-done"}, thought)
    yield f"step-{NUM_STEPS}-done", "All steps ran."


@pytest.mark.parametrize("example", ["codex.sh", "codex_oss.sh"])
def test_it_calls_its_tools_and_its_prompt_stays_warm(example: str, tmp_path: Path) -> None:
    """By a provider of its configuration, and by that which it has for Ollama."""
    work = tmp_path / "work"
    work.mkdir()
    with scripted(tmp_path, answers()) as (server, client):
        said = run([str(EXAMPLES / example), url_of(client), *TASK], env=environment(tmp_path), cwd=work)
        server.stop()
        lines = [found for line in server.lines if (found := re.search(r" prompt=(\d+) cached=(\d+) ", line))]
    assert said.strip() == "All steps ran."
    turns = [(int(found[1]), int(found[2])) for found in lines]
    assert len(turns) == NUM_STEPS + 1
    assert all(cached >= 0.95 * prompt for prompt, cached in turns[1:]), turns


def test_it_is_launched(tmp_path: Path) -> None:
    with scripted(tmp_path, [(".", "Hello from the script.")]) as (_, client):
        command = ["pippin", "launch", "codex", "--url", url_of(client), "--", "exec", "--skip-git-repo-check", "Hi"]
        assert run(command, env=environment(tmp_path), cwd=tmp_path).strip() == "Hello from the script."
