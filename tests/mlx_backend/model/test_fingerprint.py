"""Fingerprints of models: alike where the files are, and different where a part of them is."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_backend.model.checkpoint import open_checkpoint
from mlx_backend.model.fingerprint import difference, fingerprints

HEADER = {"__metadata__": {"format": "mlx"}, "w": {"dtype": "U8", "shape": [1 << 20], "data_offsets": [0, 1 << 20]}}


def write(folder: Path) -> Path:
    folder.mkdir()
    header = json.dumps(HEADER).encode()
    data = bytes(range(256)) * 4096
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 9}')
    return folder


def prints(folder: Path) -> dict[str, str]:
    return fingerprints(open_checkpoint(folder))


def test_copies_are_alike_however_config_is_written(tmp_path: Path) -> None:
    own = write(tmp_path / "a")
    copy = Path(shutil.copytree(own, tmp_path / "b"))
    (copy / "config.json").write_text('{\n  "vocab_size": 9,\n  "model_type": "llama"\n}')
    (copy / "README.md").write_text("another")
    assert difference(prints(copy), prints(own)) is None


def flip(place: int) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[place] ^= 1
        file.write_bytes(content)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'), "config.json differs"),
        (flip(-1), "model.safetensors differs from rank 0's"),
        (flip(-(1 << 20)), "model.safetensors differs"),
        (lambda folder: os.truncate(folder / "model.safetensors", 1 << 21), "model.safetensors differs"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "model-a.safetensors"),
            "model-a.* is not among",
        ),
    ],
)
def test_another_model_is_named_by_its_file(tmp_path: Path, change: Callable[[Path], object], says: str) -> None:
    own, other = write(tmp_path / "a"), write(tmp_path / "b")
    change(other)
    found = difference(prints(other), prints(own))
    assert found is not None
    assert re.search(says, found)


def test_a_file_that_is_missing_is_named() -> None:
    assert difference({"config.json": "a"}, {"config.json": "a", "model.safetensors": "b"}) == (
        "model.safetensors is missing"
    )
