"""`pippin cache`: what it prints and removes, its exit codes, and one line for what is wrong with the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.prefix_cache import folder
from mlx_backend.prefix_cache.files import Header, write_block
from mlx_backend.prefix_cache.identity import chain_id
from server import cli

FIRST, SECOND = "ab" * 16, "cd" * 16


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PIPPIN_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")


def write(path: Path, tokens: Sequence[int]) -> Path:
    parent = b"r" * 16
    block_id = chain_id(parent, tokens)
    path.mkdir(exist_ok=True)
    file = path / f"{block_id.hex()}.kv"
    write_block(file, Header(block_id, parent, 0, tuple(tokens), False, False, None, 3), [memoryview(b"123")])
    os.utime(file, (1.7e9, 1.7e9))
    return file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for model, bits, tokens in ((FIRST, 8, (1, 2)), (FIRST, 8, (3,)), (SECOND, None, (4,))):
        write(tmp_path / model, tokens)
        about = {"model": "pocket" if model == FIRST else "other", "kv_cache": {"bits": bits}}
        (tmp_path / model / "about.json").write_text(json.dumps(about))
    return tmp_path


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(("cache", *argv))
    return int(ended.value.code or 0)


def listed(root: Path, capsys: pytest.CaptureFixture[str]) -> list[Any]:
    capsys.readouterr()
    assert run("ls", "--dir", str(root), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["folder"] == str(root)
    found: list[Any] = document["models"]
    return found


# --- ls


def test_a_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls", "--dir", str(root)) == 0
    head, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["model", "id", "KV", "bits", "blocks", "tokens", "size", "last", "used"]
    assert sorted(row[:5] for row in rows) == [
        ["other", SECOND[:12], "full", "1", "1"],
        ["pocket", FIRST[:12], "8", "2", "3"],
    ]


def test_for_programs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {each["model"]: each for each in listed(root, capsys)}
    assert (found["pocket"]["id"], found["pocket"]["num_blocks"], found["pocket"]["num_tokens"]) == (FIRST, 2, 3)
    assert found["pocket"]["kv_bits"] == {"keys": 8, "values": 8}
    assert found["other"]["used_at"] == "2023-11-14T22:13:20+00:00"
    assert found["other"]["about"]["model"] == "other"


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls", "--dir", str(tmp_path)) == 0
    assert capsys.readouterr().out == f"no cached blocks in {tmp_path}\n"
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_the_configuration(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(f"prefix_cache: {{dir: {root}}}\n")
    assert run("ls", "--config", str(file)) == 0
    assert "pocket" in capsys.readouterr().out
    monkeypatch.setenv("PIPPIN_PREFIX_CACHE_DIR", str(root))
    assert run("ls") == 0
    assert "pocket" in capsys.readouterr().out
    assert run("ls", "--dir", str(tmp_path / "nowhere")) == 2


def test_names_that_a_terminal_would_obey(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / FIRST / "about.json").write_text(json.dumps({"model": "\x1b]0;evil\x07[red]\n"}))
    assert run("ls", "--dir", str(root)) == 0
    out = capsys.readouterr().out
    assert "?]0;evil?[red]?" in out and "\x1b" not in out


def test_damage_is_hinted_at(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(root / FIRST, (9,)).write_bytes(b"no")
    assert run("ls", "--dir", str(root)) == 0
    assert "1 blocks cannot be read; run `pippin cache verify`" in capsys.readouterr().err


# --- what is wrong with the folder


@pytest.mark.parametrize("command", ["ls", "clear", "verify"])
def test_one_line_for_a_folder_that_is_none(command: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = root / "file"
    file.write_text("x")
    told = {
        str(file): "not a folder",
        str(root / "nowhere"): "does not exist",
        str(file / "below"): "does not exist",
        "a" * 5000: "File name too long",
        "a\0b": "",
        "~nobody-of-this-name/x": "",
    }
    for directory, reason in told.items():
        assert run(command, "--dir", directory) == 2
        err = capsys.readouterr().err
        assert err.startswith("pippin: ") and err.count("\n") == 1 and reason in err


def test_no_folder_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    for directory in ([], ["--dir", ""]):
        assert run("ls", *directory) == 2
        assert "use --dir FOLDER, or set prefix_cache.dir" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["ls", "clear", "verify"])
def test_no_permission(
    command: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(root))

    monkeypatch.setattr(folder, "models", refuse)
    assert run(command, "--dir", str(root)) == 2
    assert capsys.readouterr().err == f"pippin: {root}: Permission denied\n"


def test_a_folder_that_cannot_be_locked(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read-only: there is nothing to remove, but it can be looked at."""

    def refuse(_: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder, "locked", refuse)
    assert run("verify", "--dir", str(root)) == 2
    assert capsys.readouterr().err == f"pippin: {root}: Permission denied\n"
    assert run("verify", "--dir", str(root), "--keep") == 0


# --- clear


def test_clearing_all(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "notes.txt").write_text("mine")
    assert run("clear", "--dir", str(root)) == 0
    assert capsys.readouterr().out.startswith("removed 3 blocks, 0.00 MB")
    assert sorted(path.name for path in root.iterdir()) == ["lock", "notes.txt"]


@pytest.mark.parametrize("name", ["pocket", FIRST, FIRST[:4]])
def test_clearing_one(name: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("clear", name, "--dir", str(root)) == 0
    assert [each["model"] for each in listed(root, capsys)] == ["other"]


def test_clearing_all_of_one_name(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / SECOND / "about.json").write_text(json.dumps({"model": "pocket"}))
    assert run("clear", "pocket", "--dir", str(root)) == 0
    assert listed(root, capsys) == []


@pytest.mark.parametrize("name", ["", "nobody", "..", "../..", "/"])
def test_clearing_what_is_not_there(name: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("clear", name, "--dir", str(root)) == 2
    assert "cached: other, pocket" in capsys.readouterr().err
    assert len(listed(root, capsys)) == 2


def test_an_id_that_is_not_clear(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(root / ("ab" * 15 + "00"), (1,))
    assert run("clear", "abab", "--dir", str(root)) == 2
    assert "2 models have ids" in capsys.readouterr().err


def test_files_of_others_stay_and_are_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / FIRST / "notes.txt").write_text("mine")
    assert run("clear", "--dir", str(root)) == 0
    assert "1 other files do not belong to the prefix cache and were kept" in capsys.readouterr().err
    assert (root / FIRST / "notes.txt").exists()


def test_while_a_server_uses_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with folder.held(root):
        assert run("clear", "--dir", str(root)) == 2
        assert "another process uses it; stop that process, or use --force" in capsys.readouterr().err
        assert sum(each["num_blocks"] for each in listed(root, capsys)) == 3
        assert run("clear", "--dir", str(root), "--force") == 0
        assert [each["num_blocks"] for each in listed(root, capsys)] == [0, 0]
        assert (root / FIRST).is_dir()


# --- verify


def damage(root: Path) -> Path:
    path = write(root / FIRST, (3,))
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    return path


def test_all_whole(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", "--dir", str(root)) == 0
    assert capsys.readouterr().out == f"3 blocks in {root}: all intact\n"


def test_what_is_damaged_is_named_and_removed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = damage(root)
    assert run("verify", "--dir", str(root)) == 1
    assert capsys.readouterr().out == (
        f"{FIRST}/{path.name}: its bytes are not those that were written\n3 blocks in {root}: 1 damaged, 1 removed\n"
    )
    assert not path.exists()
    assert run("verify", "--dir", str(root)) == 0


def test_what_is_damaged_is_only_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = damage(root)
    assert run("verify", "--dir", str(root), "--keep", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    (found,) = document["damaged"]
    assert (found["file"], document["num_blocks"], document["num_removed"]) == (str(path), 3, 0)
    assert path.exists()


def test_verifying_while_a_server_uses_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = damage(root)
    with folder.held(root):
        assert run("verify", "--dir", str(root)) == 2
        assert "use --keep to check" in capsys.readouterr().err
        assert run("verify", "--dir", str(root), "--keep") == 1
    assert path.exists()
