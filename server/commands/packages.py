"""Other packages with the names of Pippin's, for `pippin doctor`: before it on Python's path, or in its own folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from server.commands.finding import Finding

NAMES = ("server", "mlx_backend")
DISTRIBUTION = "pippin"


@dataclass(frozen=True, slots=True)
class Others:
    """Each list has (name, place): a folder, or the name of a distribution."""

    on_path: Sequence[tuple[str, str]] = ()
    """What `import NAME` gives programs other than the command `pippin`."""
    in_place: Sequence[tuple[str, str]] = ()
    """Distributions that have installed files into the same package."""


def find_others() -> Others:
    """Look for them. Imports nothing that is not Pippin's."""
    on_path = []
    for name in NAMES:
        first = _first_on_path(name)
        if first is not None and not _is_same(first, Path(str(import_module(name).__file__)).parent):
            on_path.append((name, str(first)))
    return Others(on_path, _owners(metadata.packages_distributions()))


def check(others: Others) -> Finding:
    """A problem where Pippin's own files may be overwritten; a warning where only other programs are affected."""
    if others.in_place:
        text = "; ".join(f"{owner} installs a package {name}, too" for name, owner in others.in_place)
        advice = "install Pippin into an environment of its own: uv tool install, or pipx"
        return Finding("packages", "problem", f"{text}, into the same folder", advice)
    if others.on_path:
        text = "; ".join(f"import {name} gives {folder}" for name, folder in others.on_path)
        advice = "the command `pippin` is not affected, `python -m server` is: unset PYTHONPATH, or start it elsewhere"
        return Finding("packages", "warning", f"{text}, which is not Pippin's", advice)
    return Finding("packages", "ok", f"{' and '.join(NAMES)} are Pippin's")


def _first_on_path(name: str) -> Path | None:
    """The folder of the package that an import would find if none was imported yet."""
    for finder in sys.meta_path:
        spec: Any = finder.find_spec(name, None)
        if spec is not None:
            locations = list(spec.submodule_search_locations or ())
            return Path(locations[0] if locations else spec.origin)
    return None


def _is_same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _owners(distributions: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    return [(name, owner) for name in NAMES for owner in {*distributions.get(name, ())} if owner != DISTRIBUTION]
