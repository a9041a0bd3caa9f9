"""The weight files that an unevaluated array is computed from, found in MLX's own graph of it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

_EDGE = re.compile(r'^("[^"]*"|\d+) -> ("[^"]*"|\d+)$')


@contextmanager
def recorded_loads() -> Iterator[dict[str, dict[str, mx.array]]]:
    """Yield the arrays of each file that `mx.load` opens in this context, by the file's name."""
    original = mx.load
    found: dict[str, dict[str, mx.array]] = {}

    def load(file: Any, *args: Any, **options: Any) -> Any:
        loaded = original(file, *args, **options)
        if isinstance(loaded, dict):
            found[Path(file).resolve().name] = dict(loaded)  # mlx-lm may have received a link
        return loaded

    mx.load = load
    try:
        yield found
    finally:
        mx.load = original


def files_needed(
    outputs: Mapping[str, list[mx.array]], loads: Mapping[str, Mapping[str, mx.array]]
) -> dict[str, frozenset[str]]:
    """Return the files that each output, by name, is computed from. Nothing is evaluated."""
    files = tuple(loads)
    named = {f"in:{place}:{name}": each for place, file in enumerate(files) for name, each in loads[file].items()}
    ends: dict[str, list[str]] = {}
    for name, parts in outputs.items():
        ends[name] = [f"out:{place}:{name}" for place in range(len(parts))]
        # an output may be an unchanged input, and an array has one name in the graph
        named |= {end: mx.expand_dims(part, 0) for end, part in zip(ends[name], parts, strict=True)}
    inputs = _read_edges(named)
    seen: dict[str, frozenset[int]] = {}
    found = {}
    for name, nodes in ends.items():
        places = frozenset().union(*(_places(node, inputs, seen) for node in nodes))
        found[name] = frozenset(files[place] for place in places)
    return found


def _read_edges(named: Mapping[str, mx.array]) -> dict[str, list[str]]:
    """Return the inputs of each node of the graph."""
    inputs: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="pippin-graph-") as folder:
        file = Path(folder) / "graph.dot"
        mx.export_to_dot(str(file), **named)
        with file.open(encoding="utf-8") as stream:
            for line in stream:
                if edge := _EDGE.match(line.rstrip()):
                    inputs.setdefault(edge[2].strip('"'), []).append(edge[1].strip('"'))
    return inputs


def _places(start: str, inputs: Mapping[str, list[str]], seen: dict[str, frozenset[int]]) -> frozenset[int]:
    """Return the files' places below a node; a graph is deep, so this does not recurse."""
    waiting = [start]
    while waiting:
        node = waiting[-1]
        if node in seen:
            waiting.pop()
        elif node.startswith("in:"):
            seen[node] = frozenset((int(node.split(":", 2)[1]),))
        elif missing := [each for each in inputs.get(node, ()) if each not in seen]:
            waiting += missing
        else:
            seen[node] = frozenset().union(*(_seen(inputs.get(node, ()), seen)))
    return seen[start]


def _seen(nodes: Iterable[str], seen: Mapping[str, frozenset[int]]) -> Iterator[frozenset[int]]:
    return (seen[node] for node in nodes)
