"""opencode against a mock with a script, by each API that its providers speak, and as `pippin launch` starts it.

It would like to fetch a list of models, and goes on where it cannot.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.running import ROOT, called, environment, of_npm, run, scripted, url_of

PROVIDERS = {
    "chat completions": "@ai-sdk/openai-compatible",
    "messages": "@ai-sdk/anthropic",
    "responses": "@ai-sdk/openai",
}
ANSWERS = [
    ("marker-42", "The note says marker-42."),
    ("Read the note", called("bash", {"command": "cat note.txt", "description": "Show the note"}, "I read it.\n")),
    (".", "A note"),
]
"""Behind them the answer to the question for a title."""

pytestmark = [pytest.mark.clients, of_npm("opencode-ai")]


def start(folder: Path) -> tuple[Path, Path]:
    """Its home and the folder where it works."""
    home, work = folder / "home", folder / "work"
    for each in (home, work, folder / "temporary"):
        each.mkdir()
    (work / "note.txt").write_text("marker-42\n", encoding="utf-8")
    return home, work


@pytest.mark.parametrize("api", PROVIDERS)
def test_a_tool_is_called_and_its_result_read(api: str, tmp_path: Path) -> None:
    home, work = start(tmp_path)
    with scripted(tmp_path, ANSWERS) as (_, client):
        command = [str(ROOT / "examples" / "opencode.sh"), url_of(client), "run", "Read the note"]
        said = run(command, env=environment(home, PROVIDER=PROVIDERS[api]), cwd=work)
    assert said.strip().endswith("The note says marker-42.")


def test_it_is_launched(tmp_path: Path) -> None:
    """It asks, answers and ends; nothing of it is left in its user's home or among temporary files."""
    home, work = start(tmp_path)
    temporary = tmp_path / "temporary"
    with scripted(tmp_path, [(".", "Hello from the script.")]) as (_, client):
        command = ["pippin", "launch", "opencode", "--url", url_of(client), "--", "run", "Say hi."]
        said = run(command, env=environment(home, TMPDIR=str(temporary)), cwd=work)
    assert said.strip() == "Hello from the script."
    assert not [path for path in home.rglob("*") if path.is_file()]
    assert not list(temporary.glob("pippin-*"))
