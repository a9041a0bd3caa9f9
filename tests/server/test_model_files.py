"""A model's files against their record: found, compared, remembered."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import LoadProgress
from server import model_files
from server.model_files import Damage, Record, Report, compare, ensure, find_record, is_known, remember
from tests.fake_hub import git_sha1


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_folder(tmp_path: Path, **files: bytes) -> Path:
    """A folder with a manifest."""
    folder = tmp_path / "model"
    folder.mkdir()
    files = files or {"a": b"one", "b": b"two" * 1000}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()]
    (folder / "SHA256SUMS").write_text("".join(lines))
    return folder


def problems(folder: Path) -> list[str]:
    record = find_record(folder)
    assert record is not None
    return [str(damage) for damage in compare(folder, record)]


def test_whole_files_pass_and_progress_is_told(tmp_path: Path) -> None:
    folder, told = write_folder(tmp_path), list[LoadProgress]()
    record = find_record(folder)
    assert record is not None and record.basis == "SHA256SUMS of the folder"
    assert compare(folder, record, told.append) == []
    assert told[0] == LoadProgress(total_bytes=3003)
    assert told[-1] == LoadProgress(done_bytes=3003, total_bytes=3003)


def test_every_kind_of_damage_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, **{"a": b"one", "b.json": b"two", "c": b"three", "d": b"four"})
    (folder / "a").write_bytes(b"One")
    (folder / "b.json").unlink()
    (folder / "c").write_bytes(b"thre")
    found = problems(folder)
    assert [line.split(" is damaged: ")[0] for line in found] == [str(folder / name) for name in ("a", "b.json", "c")]
    assert found[1].endswith("it is not there")


@pytest.mark.parametrize("line", ["x  a", "0" * 64 + "  ../a", "0" * 64 + "  /etc/passwd", "0" * 64])
def test_a_broken_manifest_is_an_error(tmp_path: Path, line: str) -> None:
    folder = write_folder(tmp_path)
    (folder / "SHA256SUMS").write_text(line + "\n")
    with pytest.raises(ModelLoadError, match="SHA256SUMS"):
        find_record(folder)


def test_a_snapshot_of_the_download_cache_is_its_own_record(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots" / "0"
    blobs.mkdir()
    (folder / "1_Pooling").mkdir(parents=True)
    for name, content in (("model.safetensors", b"large"), ("config.json", b"{}"), ("1_Pooling/config.json", b"[]")):
        is_large = name.endswith("safetensors")
        digest = hashlib.sha256(content).hexdigest() if is_large else git_sha1(content)
        (blobs / digest).write_bytes(content)
        (folder / name).symlink_to(os.path.relpath(blobs / digest, (folder / name).parent))
    record = find_record(folder)
    assert record is not None and record.basis == "the hub's record"
    assert sorted(record.digests) == ["1_Pooling/config.json", "config.json", "model.safetensors"]
    assert problems(folder) == []
    (folder / "config.json").resolve().write_bytes(b"{ }")
    assert [line.partition(" is ")[0] for line in problems(folder)] == [str(folder / "config.json")]
    assert "Git's SHA-1" in problems(folder)[0]
    (folder / "model.safetensors").resolve().unlink()
    assert problems(folder)[1].endswith("model.safetensors is damaged: it is not there")


def test_a_download_into_a_folder_has_notes(tmp_path: Path) -> None:
    notes = tmp_path / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (tmp_path / "x.safetensors").write_bytes(b"large")
    digest = hashlib.sha256(b"large").hexdigest()
    (notes / "x.safetensors.metadata").write_text(f"commit\n{digest}\n1.0\n")
    assert problems(tmp_path) == []
    (tmp_path / "x.safetensors").write_bytes(b"Large")
    assert len(problems(tmp_path)) == 1


def test_what_was_compared_is_not_compared_again_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, compared = write_folder(tmp_path), list[Path]()

    def noting(folder: Path, record: Record, report: Report) -> list[Damage]:
        compared.append(folder)
        return compare(folder, record, report)

    monkeypatch.setattr(model_files, "compare", noting)
    ensure(folder, is_repeated=False)
    ensure(folder, is_repeated=False)
    assert len(compared) == 1
    ensure(folder, is_repeated=True)
    assert len(compared) == 2
    os.utime(folder / "a", ns=(1, 1))
    ensure(folder, is_repeated=False)
    assert len(compared) == 3
    (folder / "a").write_bytes(b"One")
    for _ in range(2):  # what is damaged is not remembered
        with pytest.raises(ModelLoadError, match=r"model/a is damaged: .*, by SHA256SUMS of the folder"):
            ensure(folder, is_repeated=False)


def test_a_folder_without_a_record_passes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert find_record(tmp_path) is None
    ensure(tmp_path, is_repeated=True)


def test_a_memory_that_is_broken_or_cannot_be_written_is_none(tmp_path: Path, cache: Path) -> None:
    folder = write_folder(tmp_path)
    record = find_record(folder)
    assert record is not None
    (cache / "pippin").mkdir(parents=True)
    (cache / "pippin" / "verified.json").write_text("[not json")
    assert not is_known(folder, record)
    remember(folder, record)
    assert is_known(folder, record)
    (cache / "pippin" / "verified.json").unlink()
    (cache / "pippin").rmdir()
    (cache / "pippin").write_text("a file")
    remember(folder, record)
    assert not is_known(folder, record)


def test_what_the_report_raises_ends_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)

    def stop(_: LoadProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(folder, is_repeated=False, report=stop)


def test_files_that_no_model_needs_may_be_missing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    names = ["README.md", "consolidated.safetensors", "model-00003-of-00009.safetensors"]
    index = {"weight_map": {"w": "model.safetensors", "m": "mtp.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    manifest = folder / "SHA256SUMS"
    with manifest.open("a") as stream:
        stream.writelines(f"{'0' * 64}  {name}\n" for name in names)
    assert problems(folder) == []
    with manifest.open("a") as stream:
        stream.writelines(f"{'0' * 64}  {name}\n" for name in ("mtp.safetensors", "tokenizer.json"))
    assert [line.partition(" is ")[0].rpartition("/")[2] for line in problems(folder)] == [
        "mtp.safetensors",
        "tokenizer.json",
    ]
