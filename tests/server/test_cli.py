"""The command line: options out of fields, what serve is handed, errors in one line, and nothing heavy imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import server
from server import cli, pocket
from server.config import Config, fields

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PIPPIN_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that `serve` was started with; it ends with code 7."""
    configs: list[Config] = []

    def serve(config: Config, *_: object, **__: object) -> int:
        configs.append(config)
        return 7

    stand_in = types.ModuleType("server.run")
    stand_in.serve = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "server.run", stand_in)
    monkeypatch.setattr(server, "run", stand_in, raising=False)
    return configs


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    return int(ended.value.code or 0)


# --- serve


def test_serve_hands_over_the_config_and_ends_with_its_code(served: list[Config]) -> None:
    assert run("serve", "/models/a", "--port", "8081", "--kv-cache-bits", "8", "--log-level", "debug") == 7
    (config,) = served
    assert (config.model, config.port, config.kv_cache.bits, config.log_level) == ("/models/a", 8081, 8, "debug")


def test_serve_reads_file_and_environment(
    served: list[Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("port: 1\nhost: ::1\nbackend: mock\n")
    monkeypatch.setenv("PIPPIN_PORT", "2")
    assert run("serve", "--config", str(file)) == 7
    assert (served[0].host, served[0].port, served[0].backend) == ("::1", 2, "mock")


@pytest.mark.parametrize("argv", [("a",), ("--model", "a"), ("a", "--model", "a")])
def test_the_model_is_an_argument_or_a_flag(served: list[Config], argv: tuple[str, ...]) -> None:
    run("serve", *argv)
    assert served[0].model == "a"


def test_without_the_pocket_model_mlx_needs_one_and_the_mock_does_not(
    served: list[Config], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pocket, "is_here", lambda: False)
    assert run("serve") == 2
    assert run("serve", "--backend", "mock") == 7
    assert len(served) == 1
    assert "no model is set; run `pippin serve MODEL`" in capsys.readouterr().err


def test_with_the_pocket_model_no_model_need_be_named(served: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pocket, "is_here", lambda: True)
    assert run("serve") == 7
    assert served[0].model is None


# --- errors


@pytest.mark.parametrize("command", ["serve", "config"])
@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--port", "x"), "pippin: flag --port: port must be a whole number, not 'x'"),
        (("--config", "/nowhere.yaml"), "pippin: file /nowhere.yaml: No such file or directory"),
        (("a", "--model", "b"), "pippin: two models are given, 'a' and --model 'b'; name one"),
    ],
)
def test_a_bad_config_is_one_line_and_code_2(
    served: list[Config], capsys: pytest.CaptureFixture[str], command: str, argv: tuple[str, ...], says: str
) -> None:
    assert run(command, *argv) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", says + "\n")
    assert served == []


def test_an_unknown_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", "--kv-cache-bit", "8") == 2
    assert capsys.readouterr().err == "pippin: unknown flag --kv-cache-bit; did you mean --kv-cache-bits?\n"
    assert run("serve", "a", "b") == 2
    assert capsys.readouterr().err == "pippin: unexpected argument 'b': the command takes one model\n"
    assert run("serve", "--port") == 2
    assert "--port" in capsys.readouterr().err


def test_flags_are_taken_as_they_are_written(served: list[Config]) -> None:
    run("serve", "--port=8081", "--aliases", "claude-*", "--port", "8082", "a b")
    assert (served[0].port, served[0].aliases, served[0].model) == (8082, "claude-*", "a b")


# --- config


def test_config_as_json_has_every_key_and_its_origin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPPIN_HOST", "::1")
    assert run("config", "--json", "--port", "81") == 0
    rows = json.loads(capsys.readouterr().out)
    assert list(rows) == [f.key for f in fields()]
    assert rows["port"] == {"value": 81, "origin": "flag --port"}
    assert rows["host"] == {"value": "::1", "origin": "environment PIPPIN_HOST"}
    assert rows["kv_cache.bits"] == {"value": None, "origin": "default"}


def test_config_as_a_table_has_the_same_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("config", "--model", "[bold]a[/bold]") == 0
    lines = [line.rstrip().split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["key", "value", "source"]
    assert [line[0] for line in lines[1:]] == [f.key for f in fields()]
    assert lines[1][1:] == ["[bold]a[/bold]", "flag --model"]


def test_the_table_cuts_nothing_on_a_narrow_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    model = "/models/" + "0123456789" * 8
    assert run("config", "--model", model) == 0
    text = capsys.readouterr().out
    assert "…" not in text
    column = "".join(part for line in text.splitlines() for part in line.split() if set(part) <= set(model))
    assert model in column


# --- help and version


def test_help_has_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for declared in fields():
        assert declared.flag in text
        assert f"{declared.help} (default {'none' if declared.default is None else declared.default})" in text


@pytest.mark.parametrize("asked", ["version", "--version"])
def test_version_names_what_computes(capsys: pytest.CaptureFixture[str], asked: str) -> None:
    assert run(asked) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"pippin {server.__version__} (mlx ")
    assert "mlx-lm " in line
    assert line.count("\n") == 1


def in_a_new_process(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, server.cli\n"
        "try: server.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = in_a_new_process("-c", script)
    assert "serve" in done.stdout
    loaded = set(done.stderr.split())
    assert "server.config" in loaded
    heavy = {"fastapi", "starlette", "uvicorn", "pydantic", "mlx", "mlx_lm", "transformers", "numpy", "yaml"}
    assert not loaded & heavy


def test_python_m_server_is_pippin() -> None:
    done = in_a_new_process("-m", "server", "config", "--port", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pippin: flag --port: port must be a whole number, not 'x'\n"
    assert "Usage: pippin " in in_a_new_process("-m", "server", "--help").stdout
