"""LoRA adapters of one model, side by side: each row of a forward pass adds those of its own adapter, or none.

The linear layers keep their weights and everything else that a model reads of them: the class of an adapted layer adds
to the result of the layer's own class. For each layer the factors of all adapters are stacked, float32, with zeros for
the base model and up to the largest rank; a batch of mixed rows gathers none of them, it multiplies by index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import AdapterConfig, AdapterInfo, EngineConfig
from mlx_backend.model.adapter_files import AdapterFiles, Factors, open_adapter, stacked_bytes
from mlx_backend.model.skeleton import Skeleton

BASE = ""
"""Adapter of requests that use none."""


class _Choice:
    """The adapter of each row of the next forward pass: None for none at all, one for all, or [rows] int32."""

    slot: int | None = None
    slots: mx.array | None = None


class _Stack:
    """The factors of one layer: a [adapters, in, rank] and b [adapters, rank, out], float32; place 0 is zeros."""

    def __init__(self, a: mx.array, b: mx.array, choice: _Choice) -> None:
        self.a, self.b, self._choice = a, b, choice

    def add(self, x: mx.array, y: mx.array) -> mx.array:
        """Return y plus the chosen adapters' part. x: [rows, tokens, in], y: [rows, tokens, out]."""
        choice = self._choice
        if choice.slots is not None:
            low = mx.gather_mm(x.astype(mx.float32), self.a, rhs_indices=choice.slots)
            return y + mx.gather_mm(low, self.b, rhs_indices=choice.slots).astype(y.dtype)
        if choice.slot is None:
            return y
        low = x.astype(mx.float32) @ self.a[choice.slot]
        return y + (low @ self.b[choice.slot]).astype(y.dtype)


class AdaptedLinear(nn.Linear):  # type: ignore[misc]
    """A linear layer, each row with its adapter or none."""

    stack: _Stack

    def __call__(self, x: mx.array) -> mx.array:
        return self.stack.add(x, super().__call__(x))


class AdaptedQuantizedLinear(nn.QuantizedLinear):  # type: ignore[misc]
    """A quantized linear layer, each row with its adapter or none."""

    stack: _Stack

    def __call__(self, x: mx.array) -> mx.array:
        return self.stack.add(x, super().__call__(x))


_ADAPTED = {nn.Linear: AdaptedLinear, nn.QuantizedLinear: AdaptedQuantizedLinear}
_PLAIN = {adapted: plain for plain, adapted in _ADAPTED.items()}


def open_adapters(config: EngineConfig) -> tuple[AdapterFiles, ...]:
    """Return the adapters of a configuration, their files checked. Raises ModelLoadError."""
    return tuple(open_adapter(each.name, Path(each.path).expanduser()) for each in config.adapters)


def with_adapters(skeleton: Skeleton, adapters: Sequence[AdapterFiles]) -> Skeleton:
    """Return the model's skeleton with the adapters' bytes among those of its weights."""
    if not adapters:
        return skeleton
    shape = skeleton.shape
    return replace(skeleton, shape=replace(shape, weights_bytes=shape.weights_bytes + stacked_bytes(adapters)))


class Adapters:
    """The adapters of one model; implements `adapter_host.AdapterHost`. Without any, nothing of the model changes."""

    files: tuple[AdapterFiles, ...] = ()

    def __init__(self) -> None:
        self._choice = _Choice()
        self._places: dict[str, int] = {BASE: 0}
        self._chosen: tuple[str, ...] = ()
        self._stacks: dict[str, _Stack] = {}
        """Stacks by the path of the layer."""

    def load(
        self,
        model: nn.Module,
        files: Sequence[AdapterFiles],
        make_caches: Callable[[], list[Any]],
        *,
        is_batched: bool,
    ) -> tuple[AdapterInfo, ...]:
        """Put all adapters beside the model's layers. Raises ModelLoadError if one does not match this model."""
        self._model, self._make_caches, self._is_batched = model, make_caches, is_batched
        return self.change(files)

    def open(self, adapter: AdapterConfig) -> AdapterFiles:
        return open_adapter(adapter.name, Path(adapter.path).expanduser())

    def change(self, files: Sequence[AdapterFiles]) -> tuple[AdapterInfo, ...]:
        before, stacks = self.files, self._stacks
        new = [adapter for adapter in files if adapter not in before]
        if files:
            self._hold(files, self._stack(files, new))
            try:
                self._check([adapter.name for adapter in new])
            except ModelLoadError:
                self._hold(before, stacks)
                raise
        else:
            self._hold((), {})
        return tuple(_describe(adapter) for adapter in files)

    def _stack(self, files: Sequence[AdapterFiles], new: Sequence[AdapterFiles]) -> dict[str, _Stack]:
        """Build the factors of every layer; those that are held stay as they are until all are built."""
        layers = dict(self._model.named_modules())
        try:
            read = {adapter.name: _Tensors(adapter, layers) for adapter in new}
            stacks = {}
            for path in sorted({path for adapter in files for path in adapter.factors}):
                known = [self._factors(adapter, path, read.get(adapter.name)) for adapter in files]
                stacks[path] = stack = _Stack(*_stacked(known), self._choice)
                mx.eval(stack.a, stack.b)
        except (RuntimeError, ValueError, KeyError, TypeError, MemoryError, OSError) as error:
            names = ", ".join(adapter.name for adapter in new or files)
            raise ModelLoadError(f"adapter {names} cannot be loaded ({error})") from error
        return stacks

    def _factors(self, adapter: AdapterFiles, path: str, read: _Tensors | None) -> tuple[mx.array, mx.array] | None:
        """Return an adapter's factors of one layer, from memory if it is held already, otherwise from its file."""
        if read is not None or path not in adapter.factors:
            return None if read is None else read.factors(path)
        place, rank, held = self._places[adapter.name], adapter.factors[path].rank, self._stacks[path]
        return held.a[place, :, :rank], held.b[place, :rank]

    def _hold(self, files: Sequence[AdapterFiles], stacks: dict[str, _Stack]) -> None:
        layers = dict(self._model.named_modules()) if stacks or self._stacks else {}
        for path in self._stacks.keys() - stacks.keys():
            layers[path].__class__ = _PLAIN[type(layers[path])]
            object.__delattr__(layers[path], "stack")
        for path, stack in stacks.items():
            layers[path].__class__ = _ADAPTED.get(type(layers[path]), type(layers[path]))
            object.__setattr__(layers[path], "stack", stack)  # not one of the model's parameters
        self.files, self._stacks = tuple(files), stacks
        self._places = {BASE: 0, **{adapter.name: place for place, adapter in enumerate(files, 1)}}
        self._chosen = ()
        self._choice.slot = self._choice.slots = None

    def _check(self, names: Sequence[str]) -> None:
        """Compute once with each adapter. Raises ModelLoadError if the model's code no longer keeps rows apart."""
        if not names:
            return
        batches = [[name] for name in names] + ([[BASE, *names]] if self._is_batched else [])
        try:
            for batch in batches:
                self.choose(batch)
                mx.eval(self._model(mx.zeros((len(batch), 1), dtype=mx.uint32), cache=self._make_caches()))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ModelLoadError(
                f"adapters cannot be served beside one another with this model ({error}); fuse one into its weights"
            ) from error
        finally:
            self.choose([BASE])

    def choose(self, names: Sequence[str]) -> None:
        """Have row number i of the next forward pass use the adapter `names[i]`; a single name is for all rows."""
        if len(self._places) == 1:
            return
        wanted = tuple(names) if len(set(names)) > 1 else (names[0],)
        if wanted == self._chosen:
            return
        self._chosen = wanted
        places = [self._places[name] for name in wanted]
        self._choice.slot = places[0] or None
        self._choice.slots = mx.array(places, dtype=mx.uint32) if len(places) > 1 else None


def _describe(adapter: AdapterFiles) -> AdapterInfo:
    return AdapterInfo(
        name=adapter.name,
        digest=adapter.digest,
        form=adapter.form,
        rank=adapter.rank,
        num_layers=len(adapter.factors),
        weights_bytes=stacked_bytes([adapter]) // 2,
    )


class _Tensors:
    """Tensors of one adapter, checked against the layers that they belong to."""

    def __init__(self, adapter: AdapterFiles, layers: dict[str, Any]) -> None:
        for path, factors in adapter.factors.items():
            _check(adapter.name, path, factors, layers.get(path))
        self._adapter = adapter
        try:
            self._arrays: dict[str, mx.array] = mx.load(str(adapter.weights))
        except RuntimeError as error:
            raise ModelLoadError(f"adapter {adapter.name}: {adapter.weights} cannot be read ({error})") from error

    def factors(self, path: str) -> tuple[mx.array, mx.array] | None:
        """Return a [in, rank] and b [rank, out], scaled, float32; None if the layer stays as it is."""
        found = self._adapter.factors.get(path)
        if found is None:
            return None
        a, b = (self._arrays[name].astype(mx.float32) for name in (found.a, found.b))
        if self._adapter.form == "peft":
            a, b = a.T, b.T
        b = found.scale * b
        if a.shape != (found.num_in, found.rank) or b.shape != (found.rank, found.num_out):
            raise ModelLoadError(f"adapter {self._adapter.name}: its file was changed while it was read; load it again")
        if not mx.all(mx.isfinite(a)).item() or not mx.all(mx.isfinite(b)).item():
            raise ModelLoadError(f"adapter {self._adapter.name}: the factors of {path} are not all finite numbers")
        return a, b


def _check(name: str, path: str, factors: Factors, layer: Any) -> None:
    if layer is None:
        raise ModelLoadError(f"adapter {name} is for another model: this one has no layer {path}")
    if type(layer) not in _ADAPTED and type(layer) not in _PLAIN:
        kind = type(layer).__name__
        raise ModelLoadError(f"adapter {name}: {path} is a {kind}; only linear layers are served: fuse it instead")
    num_out, num_in = layer.weight.shape
    if isinstance(layer, nn.QuantizedLinear):
        num_in = num_in * 32 // layer.bits
    if (factors.num_in, factors.num_out) != (num_in, num_out):
        raise ModelLoadError(
            f"adapter {name} is for another model: {path} is {num_in} x {num_out} here and "
            f"{factors.num_in} x {factors.num_out} in the adapter"
        )


def _stacked(factors: Sequence[tuple[mx.array, mx.array] | None]) -> tuple[mx.array, mx.array]:
    known = [each for each in factors if each is not None]
    rank = max(a.shape[1] for a, _ in known)
    (num_in, _), (_, num_out) = known[0][0].shape, known[0][1].shape
    none = (mx.zeros((num_in, rank)), mx.zeros((rank, num_out)))
    padded = [none, *(none if each is None else _padded(*each, rank) for each in factors)]
    return mx.stack([a for a, _ in padded]), mx.stack([b for _, b in padded])


def _padded(a: mx.array, b: mx.array, rank: int) -> tuple[mx.array, mx.array]:
    missing = rank - a.shape[1]
    return mx.pad(a, ((0, 0), (0, missing))), mx.pad(b, ((0, missing), (0, 0)))
