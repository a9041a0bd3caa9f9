"""The share of every rank of a split model, read from mlx-lm's own code for splitting it. Nothing is computed.

The model is built as `skeleton` builds it, and split by its own `shard` or `pipeline` with a stand-in for the group.
Collectives are replaced by functions that return arrays of the same shapes and record the messages they would have
sent. Not for a process that has begun to compute with other ranks: the replacements apply to the whole process.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers import distributed as mlx_sharding
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.models.cache import make_prompt_cache

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.model.skeleton import Skeleton, read_model
from mlx_backend.planning.ranks import Divisible, Message, Parallel, RankShape, RankShapes, Splits, check, even_split

Build = Callable[[], tuple[nn.Module, Mapping[str, Any]]]
"""Builds the model anew, with its configuration: splitting changes a model."""
_ERRORS = (ValueError, TypeError, AttributeError, AssertionError, IndexError, KeyError, ZeroDivisionError)
_PROBE_SIZE = 2
_LAYER = re.compile(r"^.*?layers\.\d+\.")


@dataclass(frozen=True, slots=True)
class StandIn:
    """Stand-in for a group that has only a size and a rank."""

    own_rank: int
    num_ranks: int

    def rank(self) -> int:
        return self.own_rank

    def size(self) -> int:
        return self.num_ranks


def read_splits(build: Build) -> Splits:
    """Return how mlx-lm can split the model, and the numbers to divide. Raises ModelLoadError."""
    model, config = build()
    pipeline = _pipeline_of(model)
    layers = [tree_flatten(layer.parameters()) for layer in model.layers]
    layer_bytes = tuple(sum(array.nbytes for _, array in arrays) for arrays in layers)
    return Splits(
        model_type=str(config.get("model_type")),
        num_layers=len(model.layers),
        divisibles=_divisibles(model) if hasattr(model, "shard") else None,
        has_pipeline=pipeline is not None,
        has_uneven_pipeline=pipeline is not None and "split" in inspect.signature(pipeline).parameters,
        layer_bytes=layer_bytes,
    )


def read_ranks(
    build: Build, splits: Splits, parallel: Parallel, size: int, split: tuple[int, ...] | None = None
) -> RankShapes:
    """Return the share and messages of each of `size` ranks. Raises ModelLoadError if this split is not possible."""
    check(splits, parallel, size, split)
    if parallel == "tensor":
        found, messages = _read_rank(build, parallel, StandIn(0, size), None)
        ranks = tuple(RankShape(rank, splits.num_layers, found.shape, found.caches) for rank in range(size))
        return RankShapes(parallel, (splits.num_layers,) * size, ranks, messages)
    counts = split or even_split(splits.num_layers, size)
    read = [_read_rank(build, parallel, StandIn(rank, size), split) for rank in range(size)]
    ranks = tuple(RankShape(rank, counts[rank], each.shape, each.caches) for rank, (each, _) in enumerate(read))
    # a token passes every border once; no rank takes part in all of them
    sends = tuple(message for _, sent in read for message in sent if message.kind == "send")
    return RankShapes(parallel, counts, ranks, sends + tuple(each for each in read[0][1] if each.kind != "send"))


def _read_rank(
    build: Build, parallel: Parallel, group: StandIn, split: tuple[int, ...] | None
) -> tuple[Skeleton, tuple[Message, ...]]:
    model, config = build()
    sent: list[Message] = []
    try:
        with _collectives(group.size(), sent):
            if parallel == "tensor":
                model.shard(group)
            else:
                _pipeline_of(model)(group, **({} if split is None else {"split": list(split)}))  # type: ignore[misc]
            found = read_model(model, config)
            sent.clear()
            model(mx.zeros((1, 1), dtype=mx.int32), cache=make_prompt_cache(model))
    except _ERRORS as error:
        what = f"{type(error).__name__}: {error}"
        raise ModelLoadError(
            f"mlx-lm cannot split this {config.get('model_type')} model over {group.size()} ranks ({what})"
        ) from error
    return (_with_own_heads(found, group.size()) if parallel == "tensor" else found), tuple(sent)


def _with_own_heads(found: Skeleton, size: int) -> Skeleton:
    attention = found.shape.attention
    if attention is None:
        return found
    own = replace(attention, num_heads=attention.num_heads // size)
    return Skeleton(replace(found.shape, attention=own), found.caches)


def _pipeline_of(model: Any) -> Callable[..., None] | None:
    """Return the pipeline method where mlx-lm's own loader finds it."""
    found: Callable[..., None] | None = getattr(getattr(model, "model", None), "pipeline", None)
    return found


# --- numbers to divide


def _divisibles(model: nn.Module) -> tuple[Divisible, ...]:
    """Return the numbers that `shard` divides: axes of weights, and counts such as heads, each kind once.

    `shard` is called for two ranks, without splitting anything; halved counts and the axes of skipped splits are
    recorded.
    """
    names = {id(array): name for name, array in tree_flatten(model.parameters())}
    before = {name: dict(_counts(module)) for name, module in model.named_modules()}
    found: list[Divisible] = []
    # the numbers recorded before an error explain it, or reading the ranks does
    with _noting(names, found), _collectives(_PROBE_SIZE, []), suppress(*_ERRORS):
        model.shard(StandIn(0, _PROBE_SIZE))
    for name, module in model.named_modules():
        now = dict(_counts(module))
        for attribute, count in before.get(name, {}).items():
            if now.get(attribute) == count // _PROBE_SIZE != count and "head" in attribute and "dim" not in attribute:
                found.append(Divisible(_name_of_count(attribute), count))
    return tuple(dict.fromkeys(found))


def _counts(module: nn.Module) -> Iterator[tuple[str, int]]:
    for name, value in vars(module).items():
        if isinstance(value, int) and not isinstance(value, bool):
            yield name, value


def _name_of_count(attribute: str) -> str:
    if "kv" in attribute or "key_value" in attribute:
        return "key and value heads"
    return "attention heads" if attribute in ("num_heads", "n_heads", "num_attention_heads") else attribute


@contextmanager
def _noting(names: dict[int, str], found: list[Divisible]) -> Iterator[None]:
    """Record the length of the axes that would be split instead of splitting weights."""
    original = mlx_sharding._shard

    def note(parameters: Any, predicate: Any, group: Any = None) -> Any:
        is_quantized = "scales" in parameters

        def one(path: str, weight: Any) -> Any:
            how = predicate(path, weight) if isinstance(weight, mx.array) else None
            if how is None:
                return weight
            axis, segments = (how, 1) if isinstance(how, int) else how
            is_last = axis % weight.ndim == weight.ndim - 1 > 0
            if not (is_quantized and is_last) or path == "scales":  # packed numbers have as many groups as scales
                what = _what(names.get(id(weight), path), is_groups=is_quantized and is_last)
                found.extend(Divisible(what, length) for length in _lengths(weight.shape[axis], segments))
            return weight

        return tree_map_with_path(one, parameters)

    mlx_sharding._shard = note
    try:
        yield
    finally:
        mlx_sharding._shard = original


def _lengths(length: int, segments: Any) -> list[int]:
    """Return the lengths of the pieces of an axis before each is divided: equal ones, or cut at these places."""
    if isinstance(segments, int):
        return [length // segments]
    places = [place if isinstance(place, int) else int(place * length) for place in segments]
    return [after - before for before, after in zip([0, *places], [*places, length], strict=True)]


def _what(name: str, *, is_groups: bool) -> str:
    """Return `quantization groups of mlp.down_proj`, without layer numbers, so that each kind is recorded once."""
    module = _LAYER.sub("", name).rpartition(".")[0]
    return f"{'quantization groups' if is_groups else 'rows or columns'} of {module or name}"


# --- stand-ins for collectives


@contextmanager
def _collectives(size: int, sent: list[Message]) -> Iterator[None]:
    """Replace MLX's collectives by functions that keep shapes and record the messages they would send."""

    def all_sum(x: Any, group: Any = None, stream: Any = None) -> Any:
        sent.append(Message("all_sum", x.nbytes))
        return x

    def all_gather(x: Any, group: Any = None, stream: Any = None) -> Any:
        sent.append(Message("all_gather", x.nbytes))
        return mx.concatenate([x] * size)

    def send(x: Any, dst: int, group: Any = None, stream: Any = None) -> Any:
        sent.append(Message("send", x.nbytes))
        return x

    def recv_like(x: Any, src: int, group: Any = None, stream: Any = None) -> Any:
        return x

    def evaluate(*arrays: Any) -> None:
        """Do nothing: some models evaluate what they split."""

    collectives = {"all_sum": all_sum, "all_gather": all_gather, "send": send, "recv_like": recv_like}
    replaced: dict[str, tuple[Any, Any]] = {name: (mx.distributed, each) for name, each in collectives.items()}
    replaced["eval"] = (mx, evaluate)
    saved = {name: getattr(module, name) for name, (module, _) in replaced.items()}
    for name, (module, function) in replaced.items():
        setattr(module, name, function)
    try:
        yield
    finally:
        for name, (module, _) in replaced.items():
            setattr(module, name, saved[name])
