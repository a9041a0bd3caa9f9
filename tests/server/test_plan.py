"""`pippin plan` as a person and as a program meet it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.cli import main
from tests.tiny_models import write_model

pytestmark = pytest.mark.mlx

PROFILES = Path(__file__).parents[2] / "server" / "profiles"

R1: dict[str, Any] = {**json.loads((PROFILES / "deepseek-r1-4bit.json").read_text()), "quantization": None}


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "r1" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps(R1))
    return file


def test_a_table_for_people(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(config), "--bits", "4", "--machine", "m3-ultra-512") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "r1: deepseek_v3, 671.0 B parameters, 36.6 B active per token" in said
    assert "weights 377.6 GB, KV cache 70,272 bytes per token" in said
    assert "163,840" in said


def test_what_does_not_fit_ends_with_3_and_says_what_helps(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(config), "--bits", "4", "--machine", "m2-ultra-192") == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "does not fit" in said
    assert "Use a machine with more memory" in said


def test_json_for_programs(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(config), "--bits", "4", "--machine", "m3-ultra-512", "--json", "--users", "1,3") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shape"]["weights_bytes"] == 377_606_822_912
    assert [row["num_users"] for row in found["users"]] == [1, 3]
    first = found["users"][0]["memory"]
    parts = ("weights_bytes", "kv_bytes", "transient_bytes", "reserve_bytes")
    assert first["total_bytes"] == sum(first[part] for part in parts) <= found["budget_bytes"]


def test_a_folder_on_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tmp_path / "tiny", "llama")
    assert run(str(folder), "--budget-gb", "1") in (0, 3)
    assert "tiny: llama" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--machine", "m3-ultra-500"], "Unknown machine 'm3-ultra-500'. Nearest: m3-ultra-512"),
        (["--users", "0"], "--users '0' must be comma-separated whole numbers from 1"),
        (["--users", "two"], "--users 'two' must be comma-separated whole numbers from 1"),
        (["--kv-bits", "7"], "bits must be one of 4, 5, 6, 8, not 7"),
        (["--kv-group-size", "64"], "group_size applies only to a quantized cache"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(str(config), *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pippin: ")
    assert message in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as a config.json"),
        ("{}", "names no model_type"),
        ('{"model_type": "x"}', "does not describe a valid model"),
    ],
)
def test_a_config_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(content)
    assert run(str(file)) == 2
    assert message in capsys.readouterr().err


def test_anchors(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run("--anchors") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if " decode " in line]) > 20
    assert any("v3-16k" in line and "m3-ultra-512" in line and "16,384" in line for line in lines)


def test_machines(capsys: pytest.CaptureFixture[str]) -> None:
    main_ended = run("--machines")
    assert main_ended == 0
    assert "m3-ultra-512" in capsys.readouterr().out
