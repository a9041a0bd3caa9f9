"""A model that is computed repeatedly with one weight changed: whatever precedes that weight is computed once.

Layers are skipped if nothing before or in them is changed: the output of the last of them is reused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_backend.conversion.errors import ConversionError
from mlx_backend.conversion.kinds import kind_of, layer_of
from mlx_backend.conversion.measured import Sample
from mlx_backend.conversion.quality import batches_of, log_probabilities, mean_kl, open_model, predicted

_UNABLE = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError)


class _Enough(Exception):
    """Raised once everything needed is computed."""


@dataclass(slots=True)
class _Pass:
    """One pass through the layers: how many are skipped, the output in their place, and which is the last."""

    num_passed: int = 0
    given: Any = None
    last: int | None = None
    told: Callable[[int, Any], None] = lambda place, out: None
    """Called with each layer's output."""


class Computed:
    """A model, its unchanged predictions on some samples, and the inputs of its layers on more of them."""

    def __init__(self, folder: Path, probes: Sequence[Sample], others: Sequence[Sample]) -> None:
        """Open the model. Raises ConversionError."""
        self._probes, self._batches = probes, batches_of(probes)
        self._others = batches_of(others)
        self._kept: list[dict[int, Any]] = []
        """Each layer's output, for each batch of probes; empty if a model's layers cannot be skipped."""
        self._latest: tuple[int, list[Any]] = (0, [])
        """Number of layers that the other batches have passed, and the outputs of the last of them."""
        self._pass = _Pass()
        try:
            self.model = open_model(folder)
            mx.eval(self.model.parameters())
            self._expected = [log_probabilities(each) for each in self._predictions()]
            mx.eval(self._expected)
        except _UNABLE as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise ConversionError(f"the model cannot be computed here ({reason}); leave --calibrate out") from None
        self.modules: dict[str, Any] = dict(self.model.named_modules())
        self._keep()

    def kl(self, path: str) -> float:
        """Return the mean KL divergence from the unchanged model's predictions; `path`: the module that is changed."""
        return max(0.0, mean_kl(self._expected, self._predictions(self._num_before(path))))

    def pass_through(self, path: str) -> Iterator[None]:
        """Compute the layer of a module, or the head, on each batch of the other samples in turn."""
        layer = layer_of(path)
        num_before, latest = self._latest
        if not self._kept or num_before > self._num_before(path):
            num_before, latest = 0, []
        found: list[Any] = []
        last = len(self.model.layers) - 1 if layer is None else layer
        for number, batch in enumerate(self._others):
            self._pass = _Pass(num_before, latest[number] if latest else None, layer)
            self._pass.told = lambda place, out: found.append(out) if place == last else None
            try:
                with suppress(_Enough):
                    mx.eval(self.model(batch.tokens))
            finally:
                self._pass = _Pass()
            mx.eval(found)
            yield
        if len(found) == len(self._others):
            self._latest = (last + 1, found)

    def _predictions(self, num_before: int = 0) -> list[mx.array]:
        found: list[tuple[int, mx.array]] = []
        for number, batch in enumerate(self._batches):
            if self._kept and num_before:
                self._pass = _Pass(num_before, self._kept[number][num_before - 1])
            found += zip(batch.places, predicted(self.model(batch.tokens), batch, self._probes), strict=True)
            self._pass = _Pass()
        return [each for _, each in sorted(found, key=lambda each: each[0])]

    def _num_before(self, path: str) -> int:
        """Return the number of layers before a module: all for the head, none for any other outside the layers."""
        if (layer := layer_of(path)) is not None:
            return layer
        return len(self.model.layers) if kind_of(path) == "output head" else 0

    def _keep(self) -> None:
        """Keep every layer's outputs, if the model's layers can be skipped."""
        kinds: dict[type, type] = {}

        def passing(kind: type) -> type:
            def call(layer: Any, *args: Any, **options: Any) -> Any:
                place, now = places[id(layer)], self._pass
                if place < now.num_passed:
                    return now.given
                if now.last is not None and place > now.last:
                    raise _Enough
                out = kind.__call__(layer, *args, **options)
                now.told(place, out)
                return out

            return type(kind.__name__, (kind,), {"__call__": call})

        layers = [layer for layer in self.model.layers if isinstance(layer, nn.Module)]
        places = {id(layer): place for place, layer in enumerate(layers)}
        for layer in layers:
            layer.__class__ = kinds.setdefault(type(layer), passing(type(layer)))
        kept: list[dict[int, Any]] = []
        for batch in self._batches:
            kept.append({})
            self._pass = _Pass(told=kept[-1].__setitem__)
            mx.eval(self.model(batch.tokens), kept[-1])
        self._pass = _Pass()
        if all(len(each) == len(layers) for each in kept):
            self._kept = kept
            self._kept = kept if self._is_same(len(layers) // 2) else []

    def _is_same(self, num_before: int) -> bool:
        """Return whether layers can be skipped: not if later ones use what earlier ones leave behind."""
        try:
            return mean_kl(self._expected, self._predictions(num_before)) == 0.0
        except _UNABLE:
            return False
        finally:
            self._pass = _Pass()
