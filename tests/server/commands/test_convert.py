"""`pippin convert` at the terminal: what is shown first, choices that exclude each other, the model in the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server import pocket
from server.cli import main
from tests.tiny_models import write_served_model

pytestmark = pytest.mark.mlx


def run(*arguments: str) -> int:
    return run_any("convert", *arguments)


def run_any(*arguments: str) -> int:
    try:
        main(arguments)
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(*arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("pippin: ") and told.count("\n") == 1
    return told


def test_a_converted_model_is_as_large_as_it_was_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_served_model(tmp_path / "source", torch_dtype="bfloat16"), tmp_path / "out"
    arguments = (str(source), "--bits", "4", "--group-size", "32", "--out", str(out))
    assert run(*arguments, "--dry-run", "--json", "--machine", "m1-pro-16") == 0
    told = json.loads(capsys.readouterr().out)
    assert not out.exists()
    assert run(*arguments) == 0
    assert (out / "model.safetensors").stat().st_size == told["weight_file_bytes"]
    assert (
        told["plan"]["machine"]["id"] == "m1-pro-16" and told["plan"]["shape"]["weights_bytes"] == told["tensor_bytes"]
    )
    shown = capsys.readouterr().out
    assert f"{told['weight_file_bytes']:,} bytes in 1 weight file" in shown
    assert f"serve it: pippin serve {out}" in shown
    assert run(*arguments) == 0
    assert "was converted so before" in capsys.readouterr().out
    main_card = (out / "README.md").read_text()
    assert "Converted from source by `pippin convert` with 4 bits g32" in main_card


def test_what_a_machine_leaves_is_the_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ("--machine", "m1-pro-16", "--context", "2k", "--users", "2", "--dry-run")
    assert run(pocket.MODEL_ID, *place, "--out", str(tmp_path / "out")) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "65 weights are quantized already, and copied" in shown
    assert "2 2,048 0.0" in shown
    assert "choose less --context" in refused(capsys, pocket.MODEL_ID, *place[:2], "--users", "1024")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "say how: one of --bits, --recipe, --fit, --machine"),
        (("--bits", "4", "--fit", "2GB"), "--bits and --fit: say one of"),
        (("--bits", "7"), "7 bits: use one of"),
        (("--bits", "4", "--group-size", "48"), "group size 48"),
        (("--bits", "4", "--mode", "mxfp8"), "mode mxfp8 has 8 bits"),
        (("--fit", "much"), "'much' is no size"),
        (("--fit", "1kB"), "is below the smallest sensible size of this model, 1."),
        (("--recipe", "dynamo"), "do you mean dynamic?"),
        (("--recipe", "dynamic", "--mode", "mxfp4"), "--mode is for --bits"),
        (("--bits", "4", "--calibrate", "t", "--scales", "range"), "--calibrate and --scales: say one of them"),
        (("--bits", "4", "--calibrate", "t", "--losses", "l"), "--losses is for --calibrate with --fit or --machine"),
        (("--machine", "m9"), "Unknown machine 'm9'"),
        (("--bits", "4", "--scales", "luck"), "--scales luck"),
        (("--bits", "4", "--dtype", "int8"), "dtype int8"),
        (("--machine", "m1-pro-16", "--context", "long"), "'long' is no number of tokens"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    arguments: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, pocket.MODEL_ID, *arguments, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--recipes") == 0
    assert "mixed_3_6" in capsys.readouterr().out


def test_a_config_alone_is_planned_and_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, recipe = tmp_path / "config.json", tmp_path / "mine.yaml"
    config.write_text((pocket.folder() / "config.json").read_text())
    arguments = (str(config), "--out", str(tmp_path / "out"), "--json")
    assert run(*arguments, "--fit", "3MB", "--save-recipe", str(recipe)) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["weight_file_bytes"] <= 3_000_000 and not (tmp_path / "out").exists()
    assert run(*arguments, "--recipe", str(recipe)) == 0
    assert json.loads(capsys.readouterr().out)["formats"] == told["formats"]


def test_two_models_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The three primary colours are red, yellow and blue.")
    assert run_any("compare", pocket.MODEL_ID, pocket.MODEL_ID, "--text", str(text), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kl"], told["agreement"]) == (0.0, 1.0) and told["num_tokens"] > 5
    chats = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "red"}]
    chats.write_text(json.dumps({"messages": turns, "chat_template_kwargs": {"enable_thinking": False}}) + "\n\n")
    assert run_any("compare", pocket.MODEL_ID, pocket.MODEL_ID, "--text", str(chats), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["num_tokens"] == 2  # the answer and its end; not the line's end that the template writes behind it
    for line, told in (('{"messages": []}', "line 1: no conversation"), ("no json", "line 1: no conversation")):
        chats.write_text(line)
        assert run_any("compare", pocket.MODEL_ID, pocket.MODEL_ID, "--text", str(chats)) == 2
        assert told in capsys.readouterr().err
    text.write_bytes(b"\xff\xfe")
    assert run_any("compare", pocket.MODEL_ID, pocket.MODEL_ID, "--text", str(text)) == 2
    assert "cannot be read as a text (it is not UTF-8)" in capsys.readouterr().err
