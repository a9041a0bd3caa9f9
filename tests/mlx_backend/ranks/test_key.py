"""The key of a group: from a file that is the owner's alone, long enough to be a secret."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from mlx_backend.ranks.channel import KEY_BYTES
from mlx_backend.ranks.key import KeyFileError, derive, read_key

SECRET = "0123456789abcdef" * 4


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ranks.key"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    return path


def test_a_file_and_standard_input_give_the_same_key(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{SECRET}\nmore"))
    assert read_key(f"@{file}") == read_key("@-") == derive(SECRET)
    assert len(derive(SECRET)) == KEY_BYTES
    assert derive(SECRET) != derive(SECRET + "0")


@pytest.mark.parametrize("given", ["", "@", SECRET, "ranks.key"])
def test_a_key_on_the_command_line_is_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(KeyFileError, match="as @FILE") as caught:
        read_key(given)
    assert not given or given == "@" or given not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"short", b"\n" * 99, b"\xff" * 64, b"x" * 5000])
def test_a_file_without_a_secret_is_refused_with_how_to_make_one(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(KeyFileError, match="openssl rand -hex 32") as caught:
        read_key(f"@{file}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_anyones_is_refused(file: Path) -> None:
    file.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_key(f"@{file}")
    with pytest.raises(KeyFileError, match="there is no key file"):
        read_key(f"@{file}.gone")
    with pytest.raises(KeyFileError, match="directory"):
        read_key(f"@{file.parent}")
