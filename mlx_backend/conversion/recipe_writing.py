"""A recipe from formats that were chosen weight by weight: as few rules as give the same. Pure; no MLX."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from mlx_backend.conversion.kinds import layer_of
from mlx_backend.conversion.spec import Spec

_LAYER = re.compile(r"(^|\.)(layers|h|blocks)\.\d+(?=\.|$)")
_USUAL_GROUP = 64
"""Group size of a rule without one."""


def to_document(specs: Mapping[str, Spec | None], description: str) -> dict[str, Any]:
    """Return the recipe, as a document, that gives each path its format.

    Paths that differ only in the layer's number are a group; a group's last rule has the format of most of its paths.
    """
    groups: dict[str, dict[Spec | None, list[int]]] = defaultdict(lambda: defaultdict(list))
    for path, spec in specs.items():
        glob = _LAYER.sub(r"\1\2.*", path)
        groups[glob][spec].append(-1 if (layer := layer_of(path)) is None else layer)
    rules = []
    # a `*` stands for any text: the longer glob, which matches fewer paths, comes first
    for glob, formats in sorted(groups.items(), key=lambda each: (-len(each[0]), each[0])):
        usual = max(formats, key=lambda spec: len(formats[spec]))
        for spec, layers in sorted(formats.items(), key=lambda each: (each[0] == usual, min(each[1]))):
            rule: dict[str, Any] = {"match": glob}
            if spec != usual:
                rule["layers"] = ranges(layers)
            rules.append(rule | _format(spec))
    return {"description": description, "rules": rules}


def ranges(numbers: Iterable[int]) -> list[int | str]:
    """Return numbers as a recipe writes layers: `[0, "3-9"]`."""
    found: list[list[int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return [first if first == last else f"{first}-{last}" for first, last in found]


def _format(spec: Spec | None) -> dict[str, Any]:
    if spec is None:
        return {"exact": True}
    if spec.mode != "affine":
        return {"mode": spec.mode}
    return {"bits": spec.bits} | ({} if spec.group_size == _USUAL_GROUP else {"group_size": spec.group_size})
