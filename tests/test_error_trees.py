"""The trees of errors in the docstrings of the two modules of errors are the trees of their classes."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

from mlx_backend.api import errors as engine_errors
from server import errors as server_errors

_BRANCH = re.compile(r"^(?P<indent>[ │├└─]*)(?P<name>[A-Z]\w+)\b")


def drawn(module: ModuleType) -> dict[str, str]:
    """Each class of the drawing, and the one that it hangs on."""
    assert module.__doc__ is not None
    parents: dict[str, str] = {}
    trail: list[tuple[int, str]] = []
    for line in module.__doc__.splitlines():
        found = _BRANCH.match(line)
        if found is None or (not trail and "Error" not in found["name"]) or ("─" not in found["indent"] and trail):
            continue
        depth = len(found["indent"])
        while trail and trail[-1][0] >= depth:
            trail.pop()
        parents[found["name"]] = trail[-1][1] if trail else "Exception"
        trail.append((depth, found["name"]))
    return parents


@pytest.mark.parametrize("module", [engine_errors, server_errors], ids=["engine", "server"])
def test_the_drawing_is_the_tree(module: ModuleType) -> None:
    classes = {
        name: kind.__mro__[1].__name__
        for name, kind in vars(module).items()
        if isinstance(kind, type)
        and issubclass(kind, Exception)
        and kind.__module__ == module.__name__
        and not name.startswith("_")
    }
    assert len(classes) > 5
    assert drawn(module) == classes
