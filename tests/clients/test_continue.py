"""Continue's command line against a mock with a script: it calls a tool, reads the result and answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.running import ROOT, called, environment, of_npm, run, scripted, url_of

pytestmark = [pytest.mark.clients, of_npm("@continuedev/cli")]


def test_a_tool_is_called_and_its_result_read(tmp_path: Path) -> None:
    answers = [
        ("marker-42", "The note says marker-42."),
        (".", called("Read", {"filepath": "note.txt"}, "I read it.\n")),
    ]
    work = tmp_path / "work"
    work.mkdir()
    (work / "note.txt").write_text("marker-42\n", encoding="utf-8")
    with scripted(tmp_path, answers) as (_, client):
        command = [str(ROOT / "examples" / "continue.sh"), url_of(client), "-p", "Read note.txt", "--auto", "--silent"]
        said = run(command, env=environment(tmp_path), cwd=work)
    assert said.strip().endswith("The note says marker-42.")
