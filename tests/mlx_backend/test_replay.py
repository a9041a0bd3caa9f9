"""The command that replays a recorded run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_backend.api.interface import DebugConfig, EngineConfig, MockConfig, SpeculationConfig
from mlx_backend.drafting.payoff import Payoff
from mlx_backend.replay import main
from tests.engine_client import one, running


async def record(file: Path) -> None:
    config = EngineConfig(model_path="mock", backend="mock", debug=DebugConfig(record=str(file)))
    async with running(config) as engine:
        await one(engine, b"hello there", 5)


async def test_a_run_gives_the_same_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.jsonl"
    await record(file)
    assert main([str(file)]) == 0
    assert capsys.readouterr().out == "0 calls gave something else\n"


async def test_what_is_different_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.jsonl"
    await record(file)
    said = [json.loads(line) for line in file.read_text().splitlines()]
    place = next(number for number, each in enumerate(said) if each["call"] == "collect")
    said[place]["gave"]["rows"][0]["token_ids"] = [7]
    file.write_text("\n".join(map(json.dumps, said)))
    assert main([str(file)]) == 1
    assert f"line {place + 1}: recorded" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", '{"call": "idle"}', "no json", '{"call": "load"}'])
def test_what_is_no_record_is_said_in_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.jsonl"
    file.write_text(text)
    assert main([str(file)]) == 2
    assert main([str(tmp_path / "nowhere")]) == 2
    assert all(line.startswith("replay: ") for line in capsys.readouterr().err.splitlines())


async def test_a_draft_model_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Payoff, "choose", lambda self, rows, **given: [min(row.num_tokens, 3) for row in rows])
    monkeypatch.setattr(Payoff, "invests", lambda *given: True)
    file = tmp_path / "run.jsonl"
    config = EngineConfig(
        model_path="mock",
        backend="mock",
        mock=MockConfig(draft_share=0.5),
        speculation=SpeculationConfig(kind="draft-model", draft_model="mock"),
        debug=DebugConfig(record=str(file)),
    )
    async with running(config) as engine:
        await one(engine, b"hello there, and to all others, too", 40)
    said = [json.loads(line) for line in file.read_text().splitlines()]
    drafted = [draft for each in said if each["call"] == "draft" for draft in each["gave"]]
    assert any(draft["token_ids"] for draft in drafted)
    assert main([str(file)]) == 0
