from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.model.checkpoint import find_model, open_checkpoint


def safetensors(num_bytes: int = 16) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(num_bytes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 512}))
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_folder(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert checkpoint.context_length == 512
    assert [file.name for file in checkpoint.weight_files] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"n_positions": 77}, 77),
        ({"text_config": {"max_position_embeddings": 99}}, 99),
        ({"max_position_embeddings": 5, "text_config": {"max_position_embeddings": 99}}, 5),
        ({}, 131_072),
    ],
)
def test_where_the_context_length_is_read(folder: Path, config: dict[str, object], length: int) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "x", **config}))
    assert open_checkpoint(folder).context_length == length


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": 3}', "\xff"])
def test_a_broken_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json" in refusal(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no model*.safetensors" in refusal(folder)


@pytest.mark.parametrize("kept", [0, 4, 8, 20])
def test_weights_without_a_whole_header(folder: Path, kept: int) -> None:
    (folder / "model.safetensors").write_bytes(safetensors()[:kept])
    assert "not a readable safetensors file" in refusal(folder)


def test_weights_cut_off(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(safetensors(5000)[:-2000])
    assert "truncated: 2 of" in refusal(folder)


@pytest.mark.parametrize("content", [b"\xff" * 64, struct.pack("<Q", 4) + b"nope" * 9, struct.pack("<Q", 2) + b"[]"])
def test_weights_that_are_something_else(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert "not a readable safetensors file" in refusal(folder)


def test_a_file_that_the_index_names_is_missing(folder: Path) -> None:
    index = {"weight_map": {"w": "model.safetensors", "v": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks model-00002.safetensors (1 of 2 files)" in refusal(folder)


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"weight_map": 3}', '{"weight_map": {"w": "../x.safetensors"}}', "[" * 9999]
)
def test_a_broken_index_of_what_is_whole_without_it(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    checkpoint = open_checkpoint(folder)
    assert [file.name for file in checkpoint.weight_files] == ["model.safetensors"]
    assert "index.json cannot be read" in checkpoint.notes[0]
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert "lacks model-00002-of-00002.safetensors" in refusal(folder)


def test_finding_a_folder(folder: Path) -> None:
    assert find_model(str(folder)) == folder


@pytest.mark.parametrize("name", ["no/such/folder", "/nowhere", "nowhere", "../x", "a b/c"])
def test_what_is_neither_a_folder_nor_a_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ModelLoadError, match="does not exist"):
        find_model(name)


def test_a_file_is_not_a_folder(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="is a file"):
        find_model(str(folder / "config.json"))


def test_a_hub_that_is_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelLoadError, match="owner/model"):
        find_model("owner/model")


@pytest.mark.parametrize("place", [1, 2, 3])
def test_damage_in_any_shard_is_found(folder: Path, place: int) -> None:
    names = [f"model-{number:05}-of-00003.safetensors" for number in range(1, 4)]
    (folder / "model.safetensors").unlink()
    for number, name in enumerate(names, 1):
        (folder / name).write_bytes(safetensors(4096)[: 100 if number == place else None])
    assert f"{names[place - 1]} is truncated" in refusal(folder)
