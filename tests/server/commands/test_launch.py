"""`pippin launch` with an agent that only writes down what it was given, against a server that runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server import cli
from server.client.agents import AGENTS, KEY_VARIABLE, Target, choose_model
from server.commands.launch import _run, _Signals
from tests.serving import mock_engine, serve, wait_until

FAKE = f"""#!{sys.executable}
import json, os, pathlib, sys
folder = pathlib.Path(os.environ["TMPDIR"])
files = {{str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}}
seen = {{"arguments": sys.argv[1:], "variables": dict(os.environ), "files": files}}
pathlib.Path(os.environ["SEEN"]).write_text(json.dumps(seen))
sys.exit(7)
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve(mock_engine()) as server:
        yield server.url


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with every agent on PATH; they write what they see into `seen`."""
    for name in ("bin", "temporary", "home"):
        (tmp_path / name).mkdir()
    for agent in AGENTS.values():
        program = tmp_path / "bin" / agent.command
        program.write_text(FAKE)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "of-the-user")
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    return int(ended.value.code or 0)


def seen(home: Path) -> dict[str, Any]:
    return dict(json.loads((home / "seen").read_text()))


def file_of(found: dict[str, Any], name: str) -> str:
    (text,) = (text for path, text in found["files"].items() if path.endswith(f"/{name}"))
    return str(text)


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_gets_what_it_needs_and_nothing_stays(
    home: Path, url: str, agent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("launch", agent, "--url", f"{url}/v1/", "--", "exec", "--model", "say hi", "-q") == 7
    found = seen(home)
    assert found["arguments"][-4:] == ["exec", "--model", "say hi", "-q"]
    assert all(path.startswith("pippin-") for path in found["files"])
    assert not [*(home / "temporary").iterdir(), *(home / "home").iterdir()]
    told = capsys.readouterr().err
    assert f"{agent} uses 'mock' at {url}" in told
    assert f"its context is 4096 tokens; {agent} needs about {AGENTS[agent].least_context}" in told
    assert found["variables"]["HOME"] == str(home / "home")


def test_codex(home: Path, url: str) -> None:
    run("launch", "codex", "--url", url)
    found = seen(home)
    settings = tomllib.loads(file_of(found, "config.toml"))
    assert (settings["model"], settings["model_context_window"]) == ("mock", 4096)
    provider = settings["model_providers"][settings["model_provider"]]
    assert (provider["base_url"], provider["wire_api"]) == (f"{url}/v1", "responses")
    assert found["variables"][provider["env_key"]] == "none"
    assert Path(found["variables"]["CODEX_HOME"]).parent == home / "temporary"


def test_claude(home: Path, url: str) -> None:
    run("launch", "claude", "--url", url, "--key", "secret", "--model", "mock")
    found = seen(home)
    variables = found["variables"]
    assert (variables["ANTHROPIC_BASE_URL"], variables["ANTHROPIC_AUTH_TOKEN"]) == (url, "secret")
    assert "ANTHROPIC_API_KEY" not in variables
    assert found["arguments"] == ["--model", "mock"]
    assert {value for name, value in variables.items() if name.endswith("_MODEL")} == {"mock"}
    assert Path(variables["CLAUDE_CONFIG_DIR"]).parent == home / "temporary"


def test_opencode(home: Path, url: str) -> None:
    run("launch", "opencode", "--url", url, "--key", "secret")
    found = seen(home)
    settings = json.loads(file_of(found, Path(found["variables"]["OPENCODE_CONFIG"]).name))
    provider = settings["provider"]["pippin"]
    assert settings["model"] == settings["small_model"] == "pippin/mock"
    assert provider["options"] == {"baseURL": f"{url}/v1", "apiKey": f"{{env:{KEY_VARIABLE}}}"}
    assert provider["models"]["mock"]["limit"]["context"] == 4096
    assert found["variables"][KEY_VARIABLE] == "secret"
    homes = [value for name, value in found["variables"].items() if name.startswith("XDG_")]
    assert len(homes) >= 4 and all(str(home / "temporary") in value for value in homes)


def test_aider(home: Path, url: str) -> None:
    run("launch", "aider", "--url", url)
    found = seen(home)
    assert found["variables"]["OPENAI_API_BASE"] == f"{url}/v1"
    assert found["arguments"][:2] == ["--model", "openai/mock"]
    assert json.loads(file_of(found, "models.json"))["openai/mock"]["max_input_tokens"] == 4096
    histories = [value for value in found["arguments"] if value.endswith("history-file") and not value.startswith("--")]
    assert len(histories) == 2 and all(value.startswith(str(home / "temporary")) for value in histories)


@pytest.mark.parametrize("agent", AGENTS)
def test_a_key_is_in_no_argument_and_no_file(agent: str, tmp_path: Path) -> None:
    """Arguments are in the list of processes."""
    target = Target(url="http://localhost", model='a"b', key="secret", context=None)
    launch = AGENTS[agent].prepare(target, tmp_path)
    assert not any("secret" in text for text in (*launch.arguments, *launch.files.values()))
    assert "secret" in launch.variables.values()
    for name, text in launch.files.items():
        (tomllib if name.endswith(".toml") else json).loads(text)


def test_what_cannot_be_started(
    home: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("launch", "vi", "--url", url) == 2
    assert "codex, opencode, claude or aider" in capsys.readouterr().err
    assert run("launch", "codex", "--url", "ftp://x") == 2
    assert run("launch", "codex", "--url", "http://127.0.0.1:9") == 1
    assert "pippin serve" in capsys.readouterr().err
    assert run("launch", "codex", "--url", url, "--model", "other/one?") == 1
    assert "'other/one?' does not exist" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(home))
    assert run("launch", "codex", "--url", url) == 1
    assert "codex is not installed, or not on PATH: npm install -g @openai/codex" in capsys.readouterr().err
    assert not (home / "seen").exists()


def test_what_ends_the_launcher_ends_the_agent_and_its_folder(home: Path, url: str) -> None:
    waits = '#!/bin/sh\necho ready > "$SEEN"\nexec /bin/sleep 100\n'
    (home / "bin" / "codex").write_text(waits)
    command = [sys.executable, "-m", "server", "launch", "codex", "--url", url]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.getcwd()})
    try:
        wait_until(lambda: (home / "seen").exists())
        process.send_signal(signal.SIGINT)  # the agent's to answer
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert not [*(home / "temporary").iterdir()]


def test_a_signal_that_comes_before_the_agent_reaches_it() -> None:
    signals = _Signals()
    signals.take(signal.SIGTERM)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]) as process:
        signals.reach(process)
        assert process.wait(60) == -signal.SIGTERM


def test_a_code_is_passed_on() -> None:
    assert _run([sys.executable, "-c", "raise SystemExit(3)"], {}) == 3


def test_the_model() -> None:
    models = [{"id": "a", "state": "unloaded"}, {"id": "b", "state": "loaded"}]
    assert choose_model(models, None)["id"] == "b"
    assert choose_model(models[:1], None)["id"] == "a"
    assert choose_model(models, "a") is models[0]
    assert choose_model(models, "alias") == {"id": "alias"}
    with pytest.raises(ValueError, match="no model"):
        choose_model([], None)
