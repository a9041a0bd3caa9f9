"""`pippin convert --from-hub`, as a process, against a hub on loopback: a weight file at a time, and what is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_backend.conversion import entry
from mlx_backend.conversion.entry import Choice
from server.commands import hub_weights, pull
from tests.fake_hub import FakeHub, serving
from tests.published_models import write_published

pytestmark = pytest.mark.mlx


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    folder = write_published(tmp_path / "tiny", "deepseek_v3", fp8=True, num_files=3)
    (folder / "tokenizer.json").write_bytes(b'{"made": "up"}')
    with serving(FakeHub("owner/tiny", {path.name: path.read_bytes() for path in folder.iterdir()})) as hub:
        yield hub


def run(hub: FakeHub, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folders = {"HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment = {**os.environ, **folders, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "server", "convert", "owner/tiny", *arguments]
    return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=300)


def test_a_model_of_the_hub_is_converted_a_file_at_a_time(hub: FakeHub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(hub, tmp_path, "--bits", "4", "--group-size", "32", "--from-hub", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert f"serve it: pippin serve {out}" in done.stdout
    entry.prepare(tmp_path / "tiny", "owner/tiny", Choice(bits=4, group_size=32)).run(tmp_path / "here", lambda _: None)
    for file in ("model.safetensors", "config.json", "tokenizer.json", "model.safetensors.index.json"):
        assert (out / file).read_bytes() == (tmp_path / "here" / file).read_bytes()
    assert not (out / ".conversion").exists()
    assert not list((tmp_path / "hf").rglob("*.safetensors"))


def test_a_weight_file_that_is_not_as_published_is_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = pull.Wanted("c", {"model.safetensors": 3}, {"model.safetensors": "0" * 64})

    def fetch_large(model: str, name: str, wanted: pull.Wanted, blobs: Path) -> None:
        (blobs / wanted.digests[name]).write_bytes(b"bad")

    monkeypatch.setattr(hub_weights, "fetch_large", fetch_large)
    with pytest.raises(entry.ConversionError, match=r"model.safetensors of owner/tiny is not as its repository says"):
        hub_weights._fetch("owner/tiny", "model.safetensors", wanted, tmp_path)
    assert list(tmp_path.iterdir()) == []
