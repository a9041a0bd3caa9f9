"""The Homebrew formula and the images: what they name is there, and agrees with the project. Neither is run here."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import server

ROOT = Path(__file__).parents[1]
FORMULA = (ROOT / "scripts/formula/pippin.rb").read_text(encoding="utf-8")
IMAGE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def lines_of(image: str, word: str) -> list[str]:
    text = image.replace("\\\n", " ")
    return [line.split(maxsplit=1)[1] for line in text.splitlines() if line.startswith(f"{word} ")]


# --- the formula


@pytest.fixture(scope="module")
def formula(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """(a formula that was written for an archive, the archive). In a copy: `build/` here stays as it is."""
    root = tmp_path_factory.mktemp("formula")
    for name in ("scripts/formula/run", "scripts/formula/pippin.rb", "server/__init__.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, root / name)
    (root / "archive.tar.gz").write_bytes(b"an archive")
    command = [str(root / "scripts/formula/run"), str(root / "archive.tar.gz"), "https://a.example/p?x=1&y=|2"]
    subprocess.run(command, check=True, capture_output=True)
    return (root / "build/homebrew/pippin.rb").read_text(), b"an archive"


def test_a_formula_is_written_for_an_archive(formula: tuple[str, bytes]) -> None:
    text, archive = formula
    assert f'sha256 "{hashlib.sha256(archive).hexdigest()}"' in text
    assert f'version "{server.__version__}"' in text
    assert 'url "https://a.example/p?x=1&y=|2"' in text
    assert not re.search(r'"@\w+@"', text)


@pytest.mark.skipif(shutil.which("ruby") is None, reason="there is no ruby")
def test_its_syntax_is_ruby(formula: tuple[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "pippin.rb").write_text(formula[0])
    subprocess.run(["ruby", "-wc", str(tmp_path / "pippin.rb")], check=True, capture_output=True)


def test_its_python_can_run_pippin_and_is_one_python() -> None:
    versions = set(re.findall(r"python@?3\.(\d+)", FORMULA))
    assert len(versions) == 1
    assert int(versions.pop()) >= 11
    assert '"--constraint", "requirements.txt"' in FORMULA


# --- the images


def test_both_images_have_the_same_python() -> None:
    tests = (ROOT / "Dockerfile.cpu-test").read_text(encoding="utf-8")
    assert {line.split()[0] for line in lines_of(IMAGE, "FROM")} == set(lines_of(tests, "FROM"))


def test_the_image_runs_as_a_user_and_ends_as_a_server_should() -> None:
    assert lines_of(IMAGE, "USER") == ["pippin"]
    assert lines_of(IMAGE, "ENTRYPOINT") == ['["pippin"]']
    assert lines_of(IMAGE, "STOPSIGNAL") == ["SIGTERM"]


def test_the_command_of_the_image_is_a_setup_that_the_server_takes() -> None:
    import json

    from server.cli import _parse_serve
    from server.security.hosts import check_setup

    (command,) = lines_of(IMAGE, "CMD")
    arguments = json.loads(command)
    assert arguments[0] == "serve"
    config = _parse_serve(arguments[1:])
    check_setup(config)
    assert config.port == int(lines_of(IMAGE, "EXPOSE")[0])


def test_what_is_copied_is_there() -> None:
    for line in lines_of(IMAGE, "COPY"):
        assert (ROOT / line.split()[0]).exists()
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", ".venv", "build"} <= set(ignored)
