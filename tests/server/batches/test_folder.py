"""A folder belongs to one server, and what a kill has left of a record is none."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from server.batches.folder import Folder, FolderError, read_records, write_record


def test_a_folder_is_for_its_owner_and_for_one_server(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "a" / "store")
    assert (tmp_path / "a" / "store").stat().st_mode & 0o077 == 0
    with pytest.raises(FolderError, match="another server uses this folder"):
        Folder(tmp_path / "a" / "store")
    folder.close()
    Folder(tmp_path / "a" / "store").close()


def test_a_folder_that_cannot_be_made_is_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FolderError, match=r"batches\.dir .*file"):
        Folder(tmp_path / "file")


def test_what_was_half_written_is_removed(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    _, path = folder.new_partial()
    (folder.files / "file-1.json.part").write_text("{")
    folder.close()
    Folder(tmp_path).close()
    assert not path.exists()
    assert list(folder.files.iterdir()) == []


def test_a_record_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_record(path, {"id": "a", "n": 1})

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(os, "fsync", fail)
        write_record(path, {"id": "a", "n": 2})
    assert json.loads(path.read_bytes()) == {"id": "a", "n": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_what_is_no_record_is_left_out_and_stays(tmp_path: Path) -> None:
    write_record(tmp_path / "a.json", {"id": "a"})
    for name, content in (("b", b"{"), ("c", b"[]"), ("d", b'{"id": "a"}'), ("e", b'{"id": "e", "bad": 1}')):
        (tmp_path / f"{name}.json").write_bytes(content)

    def build(fields: Any) -> str:
        if "bad" in fields:
            raise TypeError("unexpected argument")
        return str(fields["id"])

    assert list(read_records(tmp_path, build)) == ["a"]
    assert len(list(tmp_path.iterdir())) == 5
