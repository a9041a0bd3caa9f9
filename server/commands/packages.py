"""Packages that share a name with Pippin's, for `pippin doctor`: earlier on Python's path, or in the same folder."""

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
    """Lists of (name, place); a place is a folder or the name of a distribution."""

    on_path: Sequence[tuple[str, str]] = ()
    """Packages that `import NAME` finds in programs other than the command `pippin`."""
    in_place: Sequence[tuple[str, str]] = ()
    """Distributions with files installed into the same package."""


def find_others() -> Others:
    """Find such packages. Imports only Pippin's own."""
    on_path = []
    for name in NAMES:
        first = _first_on_path(name)
        if first is not None and not _is_same(first, Path(str(import_module(name).__file__)).parent):
            on_path.append((name, str(first)))
    return Others(on_path, _owners(metadata.packages_distributions()))


def check(others: Others) -> Finding:
    """Report a problem if Pippin's own files may be overwritten; a warning if only other programs are affected."""
    if others.in_place:
        text = "; ".join(f"{owner} also installs a package {name}" for name, owner in others.in_place)
        advice = "install Pippin into its own environment, with uv tool install or pipx"
        return Finding("packages", "problem", f"{text}, into the same folder", advice)
    if others.on_path:
        text = "; ".join(f"import {name} finds {folder}" for name, folder in others.on_path)
        advice = "`python -m server` is affected, the command `pippin` is not: unset PYTHONPATH, or start it elsewhere"
        return Finding("packages", "warning", f"{text}, which does not belong to Pippin", advice)
    return Finding("packages", "ok", f"{' and '.join(NAMES)} belong to Pippin")


def _first_on_path(name: str) -> Path | None:
    """Return the folder of the package that a fresh import would find."""
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
