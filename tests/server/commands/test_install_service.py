"""What is written for launchd and for systemd, where, and over what; systemd's own checker, where it is there."""

from __future__ import annotations

import plistlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.appliance import launchd, systemd
from server.cli import app
from server.commands.install_service import Here, build, build_rank, install, uninstall
from server.config import Config, ConfigError, StreamConfig

AWKWARD = ("my model", "--log-level", "info", "50%", "a$b", 'q"q', "back\\slash", "é", "")
LAUNCHD_KEYS = {
    *("Label", "ProgramArguments", "WorkingDirectory", "EnvironmentVariables", "RunAtLoad", "KeepAlive", "Umask"),
    *("ThrottleInterval", "ExitTimeOut", "ProcessType", "SoftResourceLimits", "HardResourceLimits", "UserName"),
    *("StandardOutPath", "StandardErrorPath"),
}
"""Of launchd.plist(5)."""


def here(platform: str, home: Path, **more: Any) -> Here:
    given = {
        "user": "ann",
        "uid": 501,
        "folder": home / "work",
        "python": "/opt/venv/bin/python3",
        "environ": {},
        **more,
    }
    return Here(platform=platform, home=home, **given)


def parse(arguments: Any) -> Config:
    return Config(stream=StreamConfig(drain_s=45))


@pytest.mark.parametrize("is_system", [False, True])
def test_a_property_list(tmp_path: Path, is_system: bool) -> None:
    environ = {"PIPPIN_PORT": "8081", "HF_TOKEN": "secret", "HF_HOME": "/models & more", "XDG_STATE_HOME": "/state"}
    found = build(here("darwin", tmp_path, environ=environ), AWKWARD, parse, is_system=is_system)
    keys = plistlib.loads(found.text.encode())
    assert set(keys) == LAUNCHD_KEYS - (set() if is_system else {"UserName"})
    log = str(tmp_path / "Library/Logs/Pippin/pippin.log")
    command = ["/opt/venv/bin/python3", "-m", "server", "serve", *AWKWARD, "--log-file", log]
    assert keys["ProgramArguments"] == command
    assert keys["KeepAlive"] == {"SuccessfulExit": False}
    assert keys["ExitTimeOut"] == 45 + 60 + 10
    assert keys["ProcessType"] == "Interactive"
    assert keys["SoftResourceLimits"] == {"NumberOfFiles": 10240}
    assert keys["EnvironmentVariables"].keys() == {"PATH", "PIPPIN_PORT", "HF_HOME", "XDG_STATE_HOME"}
    assert launchd.is_ours(found.text)
    domain = "system" if is_system else "gui/501"
    assert found.stop[0][-1] == f"{domain}/local.pippin.server"
    folder = Path("/Library/LaunchDaemons") if is_system else tmp_path / "Library/LaunchAgents"
    assert found.path == folder / "local.pippin.server.plist"
    assert f"{log} ann:staff 600 5 10240 * JN" in " ".join(found.hints)


def test_an_own_log_file_is_kept(tmp_path: Path) -> None:
    def own(_: Any) -> Config:
        return Config(log_file="logs/mine.log")

    found = build(here("darwin", tmp_path), [], own, is_system=False)
    assert "--log-file" not in plistlib.loads(found.text.encode())["ProgramArguments"]
    assert tmp_path / "work/logs" in found.folders


@pytest.mark.parametrize("is_system", [False, True])
def test_a_unit(tmp_path: Path, is_system: bool) -> None:
    found = build(here("linux", tmp_path), AWKWARD, parse, is_system=is_system)
    unit = found.text.splitlines()
    for line in (
        "Restart=on-failure",
        "TimeoutStopSec=115",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "LimitNOFILE=10240",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        f"ReadWritePaths=-{tmp_path}/.cache/huggingface",
    ):
        assert line in unit
    assert ("User=ann" in unit) is is_system
    assert f"WantedBy={'multi-user' if is_system else 'default'}.target" in unit
    assert systemd.is_ours(found.text)


@pytest.fixture
def key(tmp_path: Path) -> str:
    (tmp_path / "work").mkdir()
    file = tmp_path / "work" / "ranks key"
    file.write_text("k" * 64)
    file.chmod(0o600)
    return "@ranks key"


def test_a_rank_is_started_again_whatever_ended_it(tmp_path: Path, key: str) -> None:
    unit, agent = (
        build_rank(here(platform, tmp_path), "10.0.0.1:7400", key, ["--rank", "1"], is_system=False)
        for platform in ("linux", "darwin")
    )
    lines = unit.text.splitlines()
    assert {"Restart=always", "StartLimitIntervalSec=0", "RestartPreventExitStatus=2"} <= set(lines)
    assert unit.path.name == "pippin-rank.service" and systemd.is_ours(unit.text)
    assert unit.start[1] == ("systemctl", "--user", "enable", "--now", "pippin-rank.service")
    keys = plistlib.loads(agent.text.encode())
    whole = f"@{tmp_path / 'work' / 'ranks key'}"
    assert keys["ProgramArguments"][-6:] == ["join", "10.0.0.1:7400", "--key", whole, "--rank", "1"]
    assert (keys["KeepAlive"], keys["Label"]) == (True, "local.pippin.rank")
    assert agent.path.name == "local.pippin.rank.plist" and launchd.is_ours(agent.text)
    assert "kill HUP" not in " ".join(agent.hints) and "k" * 64 not in unit.text + agent.text


@pytest.mark.parametrize(
    ("leader", "given", "says"),
    [
        ("10.0.0.1", "@ranks key", "--join: '10.0.0.1' is no HOST:PORT"),
        ("10.0.0.1:7400", None, "needs --key @FILE"),
        ("10.0.0.1:7400", "@-", "needs --key @FILE"),
        ("10.0.0.1:7400", "secret", "--key: a key is given as @FILE"),
        ("10.0.0.1:7400", "@none", "there is no key file"),
    ],
)
def test_a_rank_that_could_not_join_is_not_installed(
    tmp_path: Path, key: str, leader: str, given: str | None, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        build_rank(here("linux", tmp_path), leader, given, [], is_system=False)


@pytest.mark.parametrize("platform", ["darwin", "linux"])
def test_a_rank_and_a_server_are_removed_each_by_itself(tmp_path: Path, key: str, platform: str) -> None:
    place = here(platform, tmp_path)
    server = build(place, [], parse, is_system=False)
    rank = build_rank(place, "10.0.0.1:7400", key, [], is_system=False)
    gone = build_rank(place, "", None, [], is_system=False, is_checked=False)
    assert rank.path == gone.path != server.path and rank.stop == gone.stop != server.stop


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("is_system", [False, True])
def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path, is_system: bool) -> None:
    (tmp_path / "work").mkdir()
    environ = {"PIPPIN_MODEL": 'a "b" 100% $x'}
    place = here("linux", tmp_path, python=sys.executable, environ=environ, user="root")
    found = build(place, AWKWARD, parse, is_system=is_system)
    file = tmp_path / systemd.NAME
    file.write_text(found.text)
    command = ["systemd-analyze", "verify", "--man=no", *([] if is_system else ["--user"]), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"XDG_RUNTIME_DIR": str(tmp_path)})
    ours = [line for line in done.stderr.splitlines() if systemd.NAME in line]
    assert ours == [], done.stderr
    broken = found.text.replace("Restart=on-failure", "Restart=perhaps")
    file.write_text(broken)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert any("restart specifier" in line for line in done.stderr.splitlines() if systemd.NAME in line)


def test_words_of_a_unit_are_what_was_meant() -> None:
    """systemd's quotes are a shell's, but for % and $, which are doubled."""
    line = next(line for line in unit_of(AWKWARD).splitlines() if line.startswith("ExecStart="))
    words = shlex.split(line.removeprefix("ExecStart="))
    assert [word.replace("%%", "%").replace("$$", "$") for word in words][4:] == list(AWKWARD)


def unit_of(arguments: Any) -> str:
    return build(here("linux", Path("/home/ann")), arguments, parse, is_system=False).text


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(ConfigError, match="control character"):
        unit_of(("two\nlines",))
    with pytest.raises(ConfigError, match="not on win32"):
        build(here("win32", Path("/")), (), parse, is_system=False)


@pytest.mark.parametrize("platform", ["darwin", "linux"])
def test_writing_replacing_and_removing(tmp_path: Path, platform: str) -> None:
    is_ours = launchd.is_ours if platform == "darwin" else systemd.is_ours
    found = build(here(platform, tmp_path), [], parse, is_system=False)
    install(found, is_ours=is_ours, force=False)
    install(found, is_ours=is_ours, force=False)
    assert found.path.read_text() == found.text
    assert [path.name for path in found.path.parent.iterdir()] == [found.path.name]
    assert all(folder.is_dir() for folder in found.folders)

    found.path.write_text("somebody else's")
    for act in (install, uninstall):
        with pytest.raises(ConfigError, match="was not written by"):
            act(found, is_ours=is_ours, force=False)
    install(found, is_ours=is_ours, force=True)

    said: list[Any] = []

    def run(command: Any) -> int:
        said.append(command)
        return 0

    uninstall(found, is_ours=is_ours, force=False, run=run)
    assert said == list(found.stop)
    assert not found.path.exists()
    with pytest.raises(ConfigError, match="no service is installed"):
        uninstall(found, is_ours=is_ours, force=False)


def test_the_command_shows_the_file_and_refuses_bad_arguments() -> None:
    if sys.platform not in ("darwin", "linux"):
        pytest.skip("neither launchd nor systemd")
    shown = CliRunner().invoke(app, ["install-service", "--print", "--", "--backend", "mock", "--stream-drain-s", "7"])
    assert shown.exit_code == 0
    assert "--stream-drain-s" in shown.output
    assert "77" in shown.output
    bad = CliRunner().invoke(app, ["install-service", "--print", "--", "--prot", "1"])
    assert isinstance(bad.exception, ConfigError)
    assert "--prot" in str(bad.exception)
