"""Other packages with the names of Pippin's: on the path, and in the same folder; the command works all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pippin_main
from server.commands.packages import Others, check, find_others

ROOT = Path(__file__).parents[3]
START = (
    "import importlib.util as util; spec = util.spec_from_file_location('pippin_main', {!r}); "
    "main = util.module_from_spec(spec); spec.loader.exec_module(main); main.main()"
)
"""As an installed command starts: its own folder is not first on the path, as that of a script would be."""


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with another package `server`."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "__init__.py").write_text("raise SystemExit('the other server')")
    return tmp_path


def test_none() -> None:
    found = check(find_others())
    assert (found.state, found.advice) == ("ok", "")


def test_one_on_the_path(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(foreign), *sys.path])
    others = find_others()
    assert others.on_path == [("server", str(foreign / "server"))]
    found = check(others)
    assert (found.state, str(foreign / "server") in found.text) == ("warning", True)
    assert "PYTHONPATH" in found.advice


def test_one_that_is_a_single_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "server.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert find_others().on_path == [("server", str(tmp_path / "server.py"))]


def test_another_distribution_in_the_same_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {"server": ["pippin", "server-things"], "mlx_backend": ["pippin"], "numpy": ["numpy"]}
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: owners)
    found = check(find_others())
    assert (found.state, "server-things" in found.text, "pipx" in found.advice) == ("problem", True, True)
    assert check(Others([("server", "/x")], [("server", "other")])).state == "problem"


@pytest.mark.parametrize("is_overwritten", [False, True])
def test_the_command_loads_its_own_packages(foreign: Path, tmp_path: Path, is_overwritten: bool) -> None:
    """Where the files themselves are another distribution's, it says so in one line."""
    main = Path(pippin_main.__file__)
    if is_overwritten:
        main = tmp_path / main.name
        main.write_text((ROOT / main.name).read_text())
        (tmp_path / "mlx_backend").mkdir()
        (tmp_path / "mlx_backend" / "__init__.py").touch()
        (tmp_path / "server" / "__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", START.format(str(main)), "version"],
        cwd=foreign,
        env={**os.environ, "PYTHONPATH": str(foreign)},
        capture_output=True,
        text=True,
        check=False,
    )
    if is_overwritten:
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert "into an environment of its own" in done.stderr
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("pippin ")
