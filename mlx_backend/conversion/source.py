"""The model to convert, as mlx-lm builds it: its weights as unevaluated arrays, taken out one at a time.

mlx-lm's own loader renames, splits and dequantizes, so a conversion has the tensors that it would serve. Arrays are
lazy: one is read and computed when it is needed, and freed after its last use. What mlx-lm stacks (the experts of a
layer) is taken apart again, so that one expert at a time is in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.mla import QuantizedMultiLinear
from mlx_lm.models.switch_layers import QuantizedSwitchLinear

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.conversion.errors import ConversionError
from mlx_backend.conversion.headers import check_names, read_header
from mlx_backend.conversion.recipes import Candidate
from mlx_backend.conversion.remote import RemoteFiles
from mlx_backend.conversion.spec import MODES, Spec
from mlx_backend.conversion.tracing import files_needed, recorded_loads
from mlx_backend.model.checkpoint import Checkpoint, open_checkpoint
from mlx_backend.model.loader import build_model
from mlx_backend.model.skeleton import build_from_config

DTYPES: Mapping[Any, str] = {
    mx.bool_: "BOOL",
    mx.uint8: "U8",
    mx.int8: "I8",
    mx.uint16: "U16",
    mx.int16: "I16",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint32: "U32",
    mx.int32: "I32",
    mx.float32: "F32",
    mx.uint64: "U64",
    mx.int64: "I64",
}
_CAST = ("float16", "bfloat16", "float32")
_PACKED = (nn.QuantizedLinear, nn.QuantizedEmbedding, QuantizedSwitchLinear, QuantizedMultiLinear)


@dataclass(slots=True)
class Weight:
    """A parameter: its shape and dtype, and the arrays that it stacks, or its only one."""

    shape: tuple[int, ...]
    dtype: Any
    parts: list[mx.array]
    is_stack: bool

    @property
    def num_weights(self) -> int:
        number = 1
        for size in self.shape:
            number *= size
        return number


@dataclass(slots=True)
class Module:
    """A layer with a weight that is quantized or can be: its format now, and the model's own preference."""

    path: str
    width: int
    shape: tuple[int, ...]
    """Shape of the weight, unpacked."""
    own: Spec | bool
    spec: Spec | None = None
    """Format in the source; None if it is not quantized."""
    has_global_scale: bool = False

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.path, self.width, self.own)


@dataclass(slots=True)
class Source:
    """An opened model: parameters by path, in the model's order, and modules by path."""

    config: Mapping[str, Any]
    """Content of config.json, unchanged."""
    weights: dict[str, Weight]
    modules: dict[str, Module]
    num_layers: int
    dtype: Any
    """Dtype that unquantized weights are cast to; None if they stay."""
    checkpoint: Checkpoint | None = None
    """None for a config alone: such a source can be planned with, and no more."""
    remote: RemoteFiles | None = None
    """Its weight files, if they are fetched one by one."""
    digests: Mapping[str, str] | None = None
    """Digests of its files, if they are not present locally."""

    @property
    def folder(self) -> Path:
        return self.files.path

    @property
    def files(self) -> Checkpoint:
        if self.checkpoint is None:
            raise ConversionError("there are no weights, but a config.json alone; its conversion can only be planned")
        return self.checkpoint

    def require(self, paths: Iterable[str]) -> None:
        """Provide the files that these weights are computed from. Raises ConversionError, OSError."""
        if self.remote is not None:
            self.remote.require(paths)

    def release(self, paths: Iterable[str]) -> None:
        """Release weights that are of no further use. Raises OSError."""
        if self.remote is not None:
            self.remote.release(paths)

    def take(self, path: str) -> list[mx.array]:
        """Give away a parameter's arrays, unevaluated; they are freed with their last reference."""
        parts, self.weights[path].parts = self.weights[path].parts, []
        return parts


def open_source(folder: Path, dtype: str | None = None, remote: RemoteFiles | None = None) -> Source:
    """Open the model in a folder; reads nothing but headers. Raises ConversionError.

    `dtype`: that of weights that are not quantized, and of scales; default: that of the model's config. `remote`:
    brings the weight files' bytes when they are needed.
    """
    try:
        checkpoint = open_checkpoint(folder)
        headers = {file.name: read_header(file) for file in checkpoint.weight_files}
        check_names(headers)
        with _recorded_stacks() as stacks, recorded_loads() as loads:
            model: Any = build_model(checkpoint)
    except ModelLoadError as error:
        raise ConversionError(str(error)) from None
    source = _taken(model, read_config(folder / "config.json"), dtype, stacks, checkpoint)
    if remote is not None:
        source.remote = remote
        remote.expect(files_needed({path: weight.parts for path, weight in source.weights.items()}, loads))
    return source


def from_config(config: Mapping[str, Any], dtype: str | None = None) -> Source:
    """Return an unquantized model of this config.json, without weights. Raises ConversionError."""
    config = {key: value for key, value in config.items() if "quantization" not in key}
    try:
        model = build_from_config(config)
    except ModelLoadError as error:
        raise ConversionError(str(error)) from None
    return _taken(model, config, dtype, {}, None)


def _taken(
    model: Any,
    config: Mapping[str, Any],
    dtype: str | None,
    stacks: Mapping[int, Sequence[mx.array]],
    checkpoint: Checkpoint | None,
) -> Source:
    """Take the arrays out of a built model."""
    wanted = _wanted_dtype(config, dtype)
    may_cast = getattr(model, "cast_predicate", lambda _: True)
    weights = {}
    flat = tree_flatten(model.parameters())
    for path, array in flat:
        parts = stacks.get(id(array))
        casts = wanted is not None and may_cast(path) and mx.issubdtype(array.dtype, mx.floating)
        cast = [part.astype(wanted) for part in parts or [array]] if casts else parts or [array]
        weights[path] = Weight(tuple(array.shape), cast[0].dtype, list(cast), parts is not None)
        if weights[path].dtype not in DTYPES:
            raise ConversionError(f"{path} is of dtype {weights[path].dtype}, which no weight file can hold here")
    modules = {module.path: module for module in _modules(model)}
    num_layers = len(model.layers)
    # the model is no longer needed: what stays of it must not hold the arrays
    model.update(tree_unflatten([(path, mx.zeros(array.shape, array.dtype)) for path, array in flat]))
    return Source(config, weights, modules, num_layers, wanted, checkpoint)


def _wanted_dtype(config: Mapping[str, Any], dtype: str | None) -> Any:
    """Return the requested dtype, or that of a model's config, where mlx-lm looks for it."""
    if dtype is not None and dtype not in _CAST:
        raise ConversionError(f"dtype {dtype}: use one of {', '.join(_CAST)}")
    text = config.get("text_config")
    found = dtype or config.get("torch_dtype")
    if found is None and isinstance(text, dict):
        found = text.get("dtype")
    return getattr(mx, found) if found in _CAST else None


@contextmanager
def _recorded_stacks() -> Iterator[Mapping[int, Sequence[mx.array]]]:
    """Yield, for the id of each array that `mx.stack` makes along the first axis in this context, its inputs.

    The arrays live until the end, so that their ids stay unique.
    """
    original, found, alive = mx.stack, {}, []

    def stack(arrays: list[mx.array], axis: int = 0, **options: Any) -> mx.array:
        made = original(arrays, axis, **options)
        if axis == 0 and len(arrays) > 1 and arrays[0].ndim >= 1:
            found[id(made)] = tuple(arrays)
            alive.append(made)
        return made

    mx.stack = stack
    try:
        yield found
    finally:
        mx.stack = original


def _modules(model: Any) -> Iterator[Module]:
    """Yield every module that is quantized or can be, in the model's order."""
    predicate = getattr(model, "quant_predicate", None)
    for path, module in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module):
        if isinstance(module, _PACKED):
            spec = Spec(module.bits, module.group_size, module.mode)
            shape = (*module.weight.shape[:-1], module.weight.shape[-1] * 32 // spec.bits)
        elif hasattr(module, "to_quantized") and "weight" in module:
            spec, shape = None, tuple(module.weight.shape)
        else:
            continue
        own = True if predicate is None else _own(predicate(path, module), spec)
        has_scale = module.get("global_scale") is not None
        yield Module(path, shape[-1], tuple(shape), own, spec, has_scale)


def _own(opinion: Any, spec: Spec | None) -> Spec | bool:
    """Return a predicate's result for a module, which mlx-lm's models give as a bool or as arguments."""
    if not isinstance(opinion, dict):
        return bool(opinion)
    mode = opinion.get("mode", "affine")
    if mode not in MODES:
        return True
    return Spec(int(opinion.get("bits", 4)), int(opinion.get("group_size", 64)), mode)


def read_config(file: Path) -> dict[str, Any]:
    """Read a model's config.json, unchanged. Raises ConversionError."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConversionError(f"{file} cannot be read as a config.json ({error})") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ConversionError(f"{file} names no model_type; is it the config.json of a language model?")
    return config
