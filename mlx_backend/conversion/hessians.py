"""Hessians: for each weight, the mean of x xT over the inputs x that it is multiplied by on calibration samples.

A Hessian gives the error that a changed weight makes in the layer's output without computing the model again. Each
routed expert has its own, which leans on the mean of all if it received few tokens. They are collected layer by layer,
so that those of one layer are held at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.mla import MultiLinear
from mlx_lm.models.switch_layers import SwitchLinear

from mlx_backend.conversion.computing import Computed
from mlx_backend.conversion.kinds import kind_of, layer_of

_LEANING = 64.0
"""Tokens that the mean of all counts for in an expert's Hessian."""
_MOST_BYTES = 8 << 30
"""Size above which a layer has no Hessians."""


class _Sum:
    """Sums of x xT, one for each part of a weight, and the number of inputs in each."""

    def __init__(self, num_parts: int, width: int) -> None:
        self.sums = mx.zeros((num_parts, width, width))
        self.counts = [0] * num_parts

    def add(self, part: int, rows: mx.array) -> None:
        rows = rows.astype(mx.float32)
        self.sums[part] += rows.T @ rows
        self.counts[part] += rows.shape[0]


class Hessians:
    """Hessians of a model's weights, computed on request."""

    def __init__(self, computed: Computed) -> None:
        self._computed = computed
        self._layer: int | None = -1
        self._found: dict[str, mx.array] = {}

    def of(self, path: str) -> mx.array | None:
        """Return the Hessian of a weight [width, width], one for each part of a stack; None if there is none."""
        if (layer := layer_of(path)) is None and kind_of(path) != "output head":
            return None
        if layer is None or layer != self._layer:
            self._found = {}
            mx.clear_cache()
            self._found = self._collect([path] if layer is None else self._paths_in(layer))
            self._layer = layer
        return self._found.get(path)

    def _paths_in(self, layer: int) -> list[str]:
        return [path for path in self._computed.modules if layer_of(path) == layer]

    def _collect(self, paths: list[str]) -> dict[str, mx.array]:
        modules = {path: self._computed.modules[path] for path in paths}
        sums = {path: made for path, module in modules.items() if (made := _empty(module)) is not None}
        if sum(each.sums.nbytes for each in sums.values()) > _MOST_BYTES:
            return {}
        with _watched({path: modules[path] for path in sums}, sums):
            for _ in self._computed.pass_through(paths[0]):
                mx.eval([each.sums for each in sums.values()])
        return {path: _mean(each) for path, each in sums.items() if any(each.counts)}


def _empty(module: Any) -> _Sum | None:
    """Return the sum to fill for a module; None for a module that does not multiply its weight by its inputs."""
    if isinstance(module, nn.Linear):
        return _Sum(1, module.weight.shape[-1])
    if isinstance(module, (SwitchLinear, MultiLinear)):
        return _Sum(module.weight.shape[0], module.weight.shape[-1])
    return None


def _mean(found: _Sum) -> mx.array:
    """Return each part's sum over its number of inputs."""
    if len(found.counts) == 1:
        made = found.sums[0] / found.counts[0]
    else:
        mean = found.sums.sum(0) / sum(found.counts)
        counts = mx.array(found.counts, mx.float32)[:, None, None]
        made = (found.sums + _LEANING * mean) / (counts + _LEANING)
    mx.eval(made)
    return made


@contextmanager
def _watched(modules: dict[str, Any], sums: dict[str, _Sum]) -> Iterator[None]:
    """Add up the inputs of modules while the context is open."""
    kinds = {path: type(module) for path, module in modules.items()}
    for path, module in modules.items():
        module.__class__ = _watching(kinds[path], sums[path])
    try:
        yield
    finally:
        for path, module in modules.items():
            module.__class__ = kinds[path]


def _watching(kind: type, into: _Sum) -> type:
    def linear(module: Any, x: mx.array) -> Any:
        into.add(0, x.reshape(-1, x.shape[-1]))
        return kind.__call__(module, x)

    def switch(module: Any, x: mx.array, indices: mx.array, *args: Any, **options: Any) -> Any:
        rows = mx.broadcast_to(x, (*indices.shape, 1, x.shape[-1])).reshape(-1, x.shape[-1])
        flat = indices.reshape(-1)
        order = mx.argsort(flat)
        chosen: Any = flat[order].tolist()
        start = 0
        for end in range(1, len(chosen) + 1):
            if end == len(chosen) or chosen[end] != chosen[start]:
                into.add(chosen[start], rows[order[start:end]])
                start = end
        return kind.__call__(module, x, indices, *args, **options)

    def multi(module: Any, x: mx.array, transpose: bool = True) -> Any:
        if transpose:  # otherwise the weight's rows are multiplied, and no inputs have its width
            heads = module.weight.shape[0]
            for head in range(heads):
                part = x[:, head if x.shape[1] == heads else 0]
                into.add(head, part.reshape(-1, x.shape[-1]))
        return kind.__call__(module, x, transpose)

    call = switch if issubclass(kind, SwitchLinear) else multi if issubclass(kind, MultiLinear) else linear
    return type(kind.__name__, (kind,), {"__call__": call})
