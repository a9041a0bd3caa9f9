"""docs/structure.md is true: the doors between the packages, the list of their modules, and the table of places."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_architecture import ROOT, SERVER_MAY_IMPORT, the_modules

TEXT = (ROOT / "docs/structure.md").read_text(encoding="utf-8")
DOORS = TEXT.partition("\n## ")[0]
MODULES = TEXT.partition("```\nserver/\n")[2].partition("\nmlx_backend/\n")[0]
ROOMS = TEXT.partition("\nmlx_backend/\n")[2].partition("\nscripts/")[0]
PLACES = TEXT.partition("## One place each")[2].partition("\n## ")[0]

ENGINE = [Path(module.path) for module in the_modules() if module.path.startswith("mlx_backend/")]
SERVER = [Path(module.path) for module in the_modules() if module.path.startswith("server/")]


def test_the_doors_are_those_that_may_be_used_and_all_of_them_are() -> None:
    names = set(re.findall(r"`([\w.]+)`", DOORS)) - {"server", "mlx_backend"}
    assert {f"mlx_backend.{name}" for name in names} == SERVER_MAY_IMPORT
    targets = {imported.target for module in the_modules() for imported in module.imports if "server/" in module.path}
    used = {door for door in SERVER_MAY_IMPORT for target in targets if f"{target}.".startswith(f"{door}.")}
    assert used == SERVER_MAY_IMPORT


@pytest.mark.parametrize("path", SERVER, ids=str)
def test_every_module_of_the_server_is_named(path: Path) -> None:
    """Packages and dialects are named as folders: what is in a dialect's is its own affair."""
    is_of_dialect = len(path.parts) == 4 and path.parts[1] == "dialects"
    name = path.parent.name if path.stem == "__init__" or is_of_dialect else path.stem
    assert re.search(rf"\b{name}\b", MODULES)


@pytest.mark.parametrize("path", ENGINE, ids=str)
def test_every_module_of_the_engine_is_named_in_its_room(path: Path) -> None:
    room = f"\n  {path.parts[1]}/" if len(path.parts) > 2 else ""
    within = re.split(r"\n  \w+/", ROOMS.partition(room)[2])[0] if room else ROOMS
    assert not room or room in ROOMS
    assert path.stem == "__init__" or re.search(rf"\b{path.stem}\b", within)


def test_every_module_that_is_named_is_there() -> None:
    for text, paths, most in ((MODULES, SERVER, 80), (ROOMS, ENGINE, 20)):
        named = set(re.findall(r"\w+\.py", text))
        assert len(named) > most
        assert named <= {path.name for path in paths}


def test_the_places_in_the_server_are_there() -> None:
    named = re.findall(r"`(server/[\w./]+)", PLACES)
    assert {"server/dialects/", "server/dialects/__init__.py", "server/errors.py"} <= {*named}
    assert all((ROOT / name).exists() for name in named)
