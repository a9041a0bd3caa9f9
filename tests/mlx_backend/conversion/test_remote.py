"""Weight files that come one at a time: which weight needs which, when they are fetched, when they are dropped."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mlx_backend.conversion import entry
from mlx_backend.conversion.entry import Choice, Remote, make_hollow
from mlx_backend.conversion.headers import read_header
from mlx_backend.conversion.remote import RemoteFiles
from tests.published_models import write_published


@pytest.mark.mlx
def test_a_conversion_fetches_each_file_once_and_has_few_at_a_time(tmp_path: Path) -> None:
    source = write_published(tmp_path / "source", "deepseek_v3", fp8=True, num_files=4)
    here = tmp_path / "hollow"
    shutil.copytree(source, here, ignore=shutil.ignore_patterns("*.safetensors"))
    for file in source.glob("*.safetensors"):
        make_hollow(here / file.name, file.read_bytes()[: read_header(file).start], file.stat().st_size)
    fetched: list[str] = []

    def fetch(name: str) -> Path:
        fetched.append(name)
        return Path(shutil.copy(source / name, tmp_path / "fetched"))

    choice = Choice(bits=4, group_size=32)
    prepared = entry.prepare(here, "tiny", choice, remote=Remote(fetch, {"commit": "c"}))
    assert fetched == []
    prepared.run(tmp_path / "out", lambda _: None)
    assert sorted(fetched) == sorted(file.name for file in source.glob("*.safetensors"))
    assert {os.stat(file).st_size for file in here.glob("*.safetensors")} == {0}
    entry.prepare(source, "tiny", choice).run(tmp_path / "direct", lambda _: None)
    weights = "model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (tmp_path / "direct" / weights).read_bytes()


def test_files_are_dropped_after_their_last_weight_and_whole_ones_kept(tmp_path: Path) -> None:
    fetched: list[str] = []

    def fetch(name: str) -> Path:
        fetched.append(name)
        (tmp_path / "fetched").write_bytes(b"head" + name.encode())
        return tmp_path / "fetched"

    for name in ("a", "b"):
        make_hollow(tmp_path / name, b"head", 5)
    files = RemoteFiles(tmp_path, fetch)
    files.expect({"x": frozenset("a"), "y": frozenset("ab"), "z": frozenset()})
    files.require(["x"])
    files.release(["x"])
    assert (tmp_path / "a").read_bytes() == b"heada"
    make_hollow(tmp_path / "a", b"head", 5)  # a later run finds it whole
    assert (tmp_path / "a").read_bytes() == b"heada"
    files.require(["y", "z"])
    files.release(["y", "z", "y"])
    assert fetched == ["a", "b"]
    assert [(tmp_path / name).stat().st_size for name in "ab"] == [0, 0]
    make_hollow(tmp_path / "a", b"head", 5)
    assert (tmp_path / "a").read_bytes() == b"head\0"
    with pytest.raises(entry.ConversionError, match="another size"):
        make_hollow(tmp_path / "a", b"head", 6)
        files.expect({"x": frozenset("a")})
        files.require(["x"])
