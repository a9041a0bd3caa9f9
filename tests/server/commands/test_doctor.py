"""What the doctor finds, from facts that are made up; and once on the machine at hand."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from mlx_backend.api.interface import MemoryConfig, PrefixCacheConfig
from mlx_backend.planning.wired_lock import Record
from mlx_backend.planning.wiring import Holder, Panic
from server import pocket
from server.appliance.systemd import NAME
from server.cli import app
from server.commands.doctor import Facts, _who_answers, examine, show
from server.commands.finding import Finding
from server.commands.install_service import Here
from server.commands.packages import Others
from server.commands.wired_memory import WiredState
from server.config import Config, ConfigError, SecurityConfig

GB = 10**9


def refuse(host: str, port: int) -> str | None:
    raise OSError(99, "Cannot assign requested address")


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    """A Mac on which all is well."""
    here = Here(platform="darwin", home=tmp_path, user="ann", uid=501, folder=tmp_path, environ={})
    return Facts(
        here=here,
        python=(3, 12),
        version_of={"mlx": "0.32.4", "mlx-lm": "0.32.2"}.get,
        requires=lambda: ["mlx[cpu]>=0.32.2 ; sys_platform == 'linux'", "mlx-lm>=0.32.2", "typer>=0.15"],
        other_packages=Others,
        memory_bytes=lambda: 512 * 2**30,
        footprint=lambda config, folder: needs(10, 12, 400),
        wired_limit_mb=lambda: 0,
        wired_state=lambda: WiredState(Record(), False),
        free_bytes=lambda folder: 900 * GB,
        who_answers=lambda host, port: None,
        cached=lambda name: None,
        num_files=10**6,
        succeeds=lambda command: True,
    )


def needs(least: float, wanted: float, limit: float | None) -> Any:
    whole = None if limit is None else int(limit * GB)
    return SimpleNamespace(least_bytes=int(least * GB), wanted_bytes=int(wanted * GB), limit_bytes=whole)


def findings(facts: Facts, config: Config | None = None) -> list[Finding]:
    told = config or Config(model=str(pocket.folder()))
    return list(examine(facts, [], lambda _: told))


def bad(facts: Facts, config: Config | None = None) -> Finding:
    """The only one that is not well."""
    (found,) = [each for each in findings(facts, config) if each.state != "ok"]
    return found


def test_all_is_well(facts: Facts) -> None:
    assert {each.state for each in findings(facts)} == {"ok"}
    assert all(each.text and not each.advice for each in findings(facts))


@pytest.mark.parametrize(
    ("changed", "what", "state", "said"),
    [
        ({"python": (3, 10)}, "python", "problem", "3.11 or newer"),
        ({"version_of": {"mlx": "0.31.9", "mlx-lm": "1.0"}.get}, "mlx", "problem", "0.32.2 or newer"),
        ({"version_of": {"mlx": "0.32.2"}.get}, "mlx-lm", "problem", "not installed"),
        ({"memory_bytes": lambda: None}, "memory", "warning", "size unknown"),
        ({"footprint": lambda *_: needs(10, 500, 400)}, None, "warning", "iogpu.wired_limit_mb=471859"),
        ({"footprint": lambda *_: needs(480, 500, 400)}, None, "problem", "iogpu.wired_limit_mb=471859"),
        ({"footprint": lambda *_: needs(900, 990, 400)}, None, "problem", "use a smaller model"),
        ({"free_bytes": lambda _: 5 * GB}, "disk of models", "warning", "5.0 GB free"),
        ({"who_answers": lambda *_: ""}, "port", "problem", "in use by another program"),
        ({"who_answers": refuse}, "port", "problem", "Cannot assign"),
        ({"num_files": 256}, "open files", "warning", "the limit is 256"),
    ],
)
def test_what_is_not(facts: Facts, changed: dict[str, Any], what: str | None, state: str, said: str) -> None:
    found = bad(replace(facts, **changed))
    assert (found.what if what else None, found.state) == (what, state)
    assert said in f"{found.text} {found.advice}"
    assert found.advice or what == "memory"


HOLDER = Holder(4711, "r1", 1_776_700_000.0)
PANIC = Panic("panic-full-2026-04-20.panic", 1_776_700_100.0)
WIRED_AND_PANICKED = WiredState(Record(None, HOLDER.since), False, [PANIC])


@pytest.mark.parametrize(
    ("policy", "state", "found", "said"),
    [
        ("auto", WiredState(Record(HOLDER, HOLDER.since), True), "ok", "process 4711 (r1, since 2026-04-20"),
        ("auto", WiredState(Record(), True), "ok", "another process has wired memory"),
        ("auto", WiredState(Record(HOLDER, HOLDER.since), False), "warning", "ended without unwiring"),
        ("auto", WIRED_AND_PANICKED, "warning", "one sequence at a time"),
        ("always", WIRED_AND_PANICKED, "warning", "wired anyway"),
        ("never", WIRED_AND_PANICKED, "ok", "ignored panics of the GPU driver: 1"),
        ("auto", WiredState(Record(None, PANIC.at + 1), False, [PANIC]), "ok", "ignored panics of the GPU driver: 1"),
        ("auto", WiredState(Record(None, None), False, []), "ok", "memory.wired is auto"),
    ],
)
def test_wired_memory(facts: Facts, policy: Any, state: WiredState, found: str, said: str) -> None:
    config = Config(model=str(pocket.folder()), memory=MemoryConfig(wired=policy))
    told = findings(replace(facts, wired_state=lambda: state), config)
    (line,) = [each for each in told if each.what == "wired memory"]
    assert line.state == found
    assert said in f"{line.text} {line.advice}"
    assert bool(line.advice) is (found == "warning")


def test_wired_memory_is_of_macs(facts: Facts) -> None:
    linux = replace(facts, here=replace(facts.here, platform="linux"))
    assert "wired memory" not in {each.what for each in findings(linux)}


def test_a_server_that_runs_already_is_no_problem(facts: Facts) -> None:
    told = findings(replace(facts, who_answers=lambda host, port: "pippin 0.1"))
    assert next(each for each in told if each.what == "port").state == "ok"


def test_the_prefix_cache_wants_room_and_a_folder_it_may_write(facts: Facts, tmp_path: Path) -> None:
    folder = tmp_path / "not/yet/there"
    config = Config(model=str(pocket.folder()), prefix_cache=PrefixCacheConfig(dir=str(folder), max_bytes=50 * GB))
    assert {each.state for each in findings(facts, config)} == {"ok"}
    found = bad(replace(facts, free_bytes=lambda _: 30 * GB), config)
    assert found.what == "disk of the prefix cache"
    assert "50.0 GB may be needed" in found.text


def test_a_configuration_that_does_not_resolve_is_the_only_thing_looked_at() -> None:
    def parse(arguments: Sequence[str]) -> Config:
        raise ConfigError("file x: unknown key 'prot'; did you mean port?")

    told = list(examine(Facts(), [], parse))
    assert told[-1].what == "configuration"
    assert "did you mean" in told[-1].text
    assert told[-1].state == "problem"


def test_an_unsafe_setup_is_a_problem(facts: Facts) -> None:
    found = bad(facts, Config(model=str(pocket.folder()), host="0.0.0.0"))
    assert (found.what, found.state) == ("configuration", "problem")
    keys = SecurityConfig(keys_file="/no/such/file")
    assert "no/such/file" in bad(facts, Config(model=str(pocket.folder()), security=keys)).text


def test_models(facts: Facts, tmp_path: Path) -> None:
    assert "does not exist" in bad(facts, Config(model=str(tmp_path / "none"))).text
    assert "no config.json" in bad(facts, Config(model=str(tmp_path))).text
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model-1.safetensors").write_bytes(b"short")
    found = bad(facts, Config(model=str(tmp_path)))
    assert found.state == "problem"
    assert "model-1.safetensors" in found.text
    (tmp_path / "model-1.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    assert "lacks model-00002-of-00002.safetensors" in bad(facts, Config(model=str(tmp_path))).text
    shutil.copytree(pocket.folder(), tmp_path / "copy")
    (tmp_path / "copy" / "model-00001-of-00002.safetensors").touch()
    left_over = bad(facts, Config(model=str(tmp_path / "copy")))
    assert (left_over.state, "skipped" in left_over.text) == ("warning", True)
    later = bad(facts, Config(model="somebody/something"))
    assert later.state == "warning"
    assert "pippin pull somebody/something" in later.advice
    assert "no files" in " ".join(each.text for each in findings(facts, Config(backend="mock")))


def test_a_service(facts: Facts, tmp_path: Path) -> None:
    linux = replace(facts, here=replace(facts.here, platform="linux"))
    file = tmp_path / ".config/systemd/user" / NAME
    file.parent.mkdir(parents=True)
    file.touch()
    asked: list[Sequence[str]] = []

    def fails(command: Sequence[str]) -> bool:
        asked.append(command)
        return False

    found = bad(replace(linux, succeeds=fails))
    assert (found.what, found.state) == ("service", "warning")
    assert asked == [("systemctl", "--user", "is-active", "--quiet", NAME)]
    assert ", running" in findings(linux)[-1].text


def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    show([Finding("port", "problem", "[red]taken", "end it")])
    assert capsys.readouterr().out == "problem port: [red]taken\n        -> end it\n"


def test_who_is_at_a_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert _who_answers("127.0.0.1", port) == ""  # bound, and nobody listens
    assert _who_answers("127.0.0.1", port) is None


@pytest.mark.mlx
def test_the_command() -> None:
    done = CliRunner().invoke(app, ["doctor", "--json", "--", "--port", "0"])
    told = json.loads(done.output)
    assert done.exit_code == int(any(each["state"] == "problem" for each in told))
    assert {"python", "mlx", "mlx-lm", "configuration", "memory", "port", "open files", "service"} <= {
        e["what"] for e in told
    }
    failing = CliRunner().invoke(app, ["doctor", "--", "--host", "192.0.2.1", "--port", "1", "--backend", "mock"])
    assert failing.exit_code == 1
    assert "-> set another" in failing.output
