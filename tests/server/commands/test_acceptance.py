"""`pippin acceptance` as a command: one step of its own, and what it refuses; and the workflow that runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from server.acceptance.steps import STEPS
from server.cli import app
from server.config import ConfigError

ROOT = Path(__file__).parents[3]


def test_a_step_into_a_file(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = CliRunner().invoke(app, ["acceptance", "--out", str(out), "--only", "facts"])
    assert (done.exit_code, done.exception) == (0, None) or isinstance(done.exception, SystemExit)
    assert "passed" in done.output
    (step,) = json.loads(out.read_text())["steps"]
    assert step["figures"]["cores"]
    assert f"1 passed; {out}" in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "x.json", "--only", "nothing"], "there is no step 'nothing'"),
        (["--out", "/nowhere/at/all.json", "--only", "facts"], "No such file or directory"),
        (["no/such/folder", "--out", "x.json"], "pippin pull no/such/folder"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["acceptance", *arguments])
    assert isinstance(done.exception, ConfigError)
    assert said in str(done.exception)


def test_the_documentation_has_every_step() -> None:
    text = (ROOT / "docs/acceptance.md").read_text(encoding="utf-8")
    table = text.partition("## Steps")[2].partition("\n`--quick`")[0]
    places = [table.find(f"`{step.name}`") for step in STEPS]
    assert -1 not in places
    assert places == sorted(places)
    assert [step.is_risky for step in STEPS] == [place > table.index("**risky**") for place in places]


def test_the_workflow_uploads_what_there_is_whatever_happens() -> None:
    job = yaml.safe_load((ROOT / ".github/workflows/apple.yml").read_text(encoding="utf-8"))["jobs"]["acceptance"]
    assert all(runner.startswith("macos-") for runner in job["strategy"]["matrix"]["runner"])
    commands = [step.get("run", "") for step in job["steps"]]
    (kit,) = [place for place, command in enumerate(commands) if "pippin acceptance --out result.json" in command]
    upload = job["steps"][kit + 1]
    assert upload["if"] == "always()"
    assert "result.json.journal" in upload["with"]["path"]
    assert commands.index("make test") > kit  # a device that hangs stays so
