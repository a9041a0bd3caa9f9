"""Choose the weight files of a model, in a folder or a repository, by their names alone. No MLX.

An index names them, but indices go stale, shards of another conversion stay behind, and files for other programs lie
beside them. Only complete sets are chosen: all files that the index names; else the file `model.safetensors`; else all
shards of a set.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

INDEX = "model.safetensors.index.json"
ONE_FILE = "model.safetensors"
_ANY = "model*.safetensors"
_SHARD = re.compile(r"(model.*)-(\d{4,6})-of-(\d{4,6})\.safetensors")
_MOST_SHARDS = 100_000


class IncompleteWeights(Exception):
    """No set of files is complete; the message names the missing ones."""


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The names of a model's weight files, and notes on their faults, in words."""

    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    is_indexed: bool = False
    """Whether the names come from the index."""


def read_index(text: str) -> frozenset[str]:
    """Return the files that an index names. Raises ValueError if there are none, or one is not beside it."""
    try:
        named = frozenset(json.loads(text)["weight_map"].values())
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it has no weight_map ({error})") from None
    for name in named:
        if not isinstance(name, str) or "/" in name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(f"it names {str(name)[:80]!r}, which is not a weight file in the same folder")
    if not named:
        raise ValueError("it names no files")
    return named


def choose(present: Collection[str], index: str | None) -> WeightFiles:
    """Return the weight files of a model among the names `present`; `index`: the index's text, if there is one.

    Raises IncompleteWeights.
    """
    notes: list[str] = []
    named: frozenset[str] = frozenset()
    if index is not None:
        try:
            named = read_index(index)
        except ValueError as error:
            notes.append(f"{INDEX} cannot be read: {error}")
    missing = named - {*present}
    if named and not any(is_main(name) for name in missing) and named > missing:
        notes += [f"{INDEX} names {_listed(missing)}, not found here"] if missing else []
        return _chosen(named - missing, present, notes, is_indexed=True)
    if missing:
        notes.append(f"{INDEX} names {_listed(missing)}, not found here")
    found = _whole(present)
    if found and not found <= named:  # a part according to the index is not a whole
        return _chosen(found, present, notes)
    if missing:
        raise IncompleteWeights(f"lacks {min(missing)} ({len(missing)} of {len(named)} files)")
    raise IncompleteWeights("; ".join((_what_lacks(present), *notes)))


def find_weights(folder: Path) -> WeightFiles:
    """Return a model folder's weight files. Raises IncompleteWeights; OSError or UnicodeError for the index."""
    index = folder / INDEX
    present = [file.name for file in folder.glob("*.safetensors") if file.is_file()]
    return choose(present, index.read_text(encoding="utf-8") if index.is_file() else None)


def is_main(name: str) -> bool:
    """Return whether a file belongs to the main set, and is not an optional part beside it."""
    return fnmatchcase(name, _ANY)


def _chosen(
    names: Iterable[str], present: Collection[str], notes: list[str], *, is_indexed: bool = False
) -> WeightFiles:
    chosen = frozenset(names)
    others = [name for name in present if fnmatchcase(name, _ANY) and name not in chosen]
    if others:
        notes = [*notes, f"{_listed(others)} skipped: not part of the model"]
    return WeightFiles(tuple(sorted(chosen)), tuple(notes), is_indexed)


def _whole(present: Collection[str]) -> frozenset[str]:
    """Return the one file, a complete set of shards, or files outside any set. Raises IncompleteWeights."""
    if ONE_FILE in present:
        return frozenset({ONE_FILE})
    sets = _shards(present)
    whole = [names for (_, number), names in sets.items() if int(number) == len(names)]
    if len(whole) > 1:
        raise IncompleteWeights(f"has two sets of weights, {min(whole[0])} … and {min(whole[1])} …; keep only one")
    if whole or sets:
        return frozenset(whole[0]) if whole else frozenset()
    return frozenset(name for name in present if fnmatchcase(name, _ANY))


def _shards(present: Collection[str]) -> dict[tuple[str, str], set[str]]:
    """Return the names of each set's shards, by (beginning, total number as written)."""
    sets: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name in sorted(present):
        found = _SHARD.fullmatch(name)
        is_numbered = found is not None and len(found[2]) == len(found[3])
        if found and is_numbered and 1 <= int(found[2]) <= int(found[3]) <= _MOST_SHARDS:
            sets[found[1], found[3]].add(name)
    return sets


def _what_lacks(present: Collection[str]) -> str:
    for (stem, written), names in _shards(present).items():
        number, digits = int(written), len(written)
        every = (f"{stem}-{place:0{digits}}-of-{written}.safetensors" for place in range(1, number + 1))
        lacking = next((name for name in every if name not in names), f"{stem}-*-of-{written}.safetensors")
        return f"lacks {lacking} ({number - len(names)} of {number} files)"
    return "has no model*.safetensors"


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    more = f" and {len(found) - 2} more" if len(found) > 2 else ""
    return ", ".join(found[:2]) + more
