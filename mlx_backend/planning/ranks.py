"""Splits of one model over several ranks: the possible ones, each rank's part, and the messages. Pure; no MLX.

Tensor: every rank has a part of every layer. Pipeline: every rank has some of the layers, rank 0 the last ones.
`model.rank_shapes` reads the numbers from mlx-lm's own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.kv_cache.plan import CacheShape
from mlx_backend.planning.memory import ModelShape

Parallel = Literal["tensor", "pipeline"]
PARALLELS: tuple[Parallel, ...] = ("tensor", "pipeline")
MOST_RANKS = 16
"""Largest group that is offered; the ring's latency grows with every rank."""
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Divisible:
    """A number of the model that the number of ranks must divide under tensor parallelism."""

    what: str
    count: int


@dataclass(frozen=True, slots=True)
class Splits:
    """The ways in which mlx-lm can split a model."""

    model_type: str
    num_layers: int
    divisibles: tuple[Divisible, ...] | None
    """Numbers to divide under tensor parallelism; None if mlx-lm has no code for it."""
    has_pipeline: bool
    has_uneven_pipeline: bool
    layer_bytes: tuple[int, ...] = ()
    """Weights of each layer, in the order of the model."""

    @property
    def tensor_sizes(self) -> tuple[int, ...]:
        """Numbers of ranks, up to MOST_RANKS, that divide everything; may be empty."""
        if self.divisibles is None:
            return ()
        sizes = range(2, MOST_RANKS + 1)
        return tuple(size for size in sizes if all(each.count % size == 0 for each in self.divisibles))

    @property
    def largest_pipeline(self) -> int:
        """The most ranks of a pipeline; 1 if there is none."""
        return min(self.num_layers, MOST_RANKS) if self.has_pipeline else 1


@dataclass(frozen=True, slots=True)
class Message:
    """One exchange in a forward pass of one token."""

    kind: Literal["all_sum", "all_gather", "send"]
    num_bytes: int
    """Bytes of one rank's array."""


@dataclass(frozen=True, slots=True)
class RankShape:
    """The part of the model on one rank."""

    rank: int
    num_layers: int
    shape: ModelShape
    caches: tuple[CacheShape, ...]


@dataclass(frozen=True, slots=True)
class RankShapes:
    """A split model. `messages`: all that one rank takes part in during a token's forward pass."""

    parallel: Parallel
    split: tuple[int, ...]
    """Layers of each rank, by rank."""
    ranks: tuple[RankShape, ...]
    messages: tuple[Message, ...]

    @property
    def size(self) -> int:
        return len(self.ranks)


def even_split(num_layers: int, size: int) -> tuple[int, ...]:
    """Return the layers of each rank in mlx-lm's default split: low ranks get the remainder."""
    base, extra = divmod(num_layers, size)
    return tuple(base + (rank < extra) for rank in range(size))


def balanced_split(layer_bytes: Sequence[int], size: int) -> tuple[int, ...]:
    """Return the layers of each rank that minimize the largest share of bytes; rank 0 has the last layers."""
    low, high = max(layer_bytes), sum(layer_bytes)
    while low < high:  # more bytes per rank never need more ranks
        middle = (low + high) // 2
        low, high = (low, middle) if len(_filled(layer_bytes, middle)) <= size else (middle + 1, high)
    counts = _filled(layer_bytes, low)
    while len(counts) < size:  # fewer ranks would do: a share that is cut in two is no larger
        largest = max(range(len(counts)), key=lambda rank: counts[rank])
        counts[largest : largest + 1] = [counts[largest] - counts[largest] // 2, counts[largest] // 2]
    return tuple(counts)


def _filled(layer_bytes: Sequence[int], most: int) -> list[int]:
    """Return the layers of each rank, from the last on, when ranks are filled in turn up to `most` bytes."""
    counts, held = [0], 0
    for size in reversed(layer_bytes):
        if held + size > most and counts[-1]:
            counts.append(0)
            held = 0
        counts[-1] += 1
        held += size
    return counts


def parse_split(text: str) -> tuple[int, ...]:
    """Read `31,30`, the layers of each rank by rank. Raises ValueError."""
    try:
        split = tuple(int(part) for part in text.split(","))
    except ValueError:
        split = ()
    if not split or min(split) < 1:
        raise ValueError(f"split {text!r} must be the layers of each rank, comma-separated, such as 31,30")
    return split


def read_split(text: str | None) -> tuple[int, ...] | None:
    """Read `ranks.split` of a configuration. Raises ModelLoadError."""
    if text is None:
        return None
    try:
        return parse_split(text)
    except ValueError as error:
        raise ModelLoadError(f"ranks.split: {error}") from None


def check(splits: Splits, parallel: Parallel, size: int, split: Sequence[int] | None = None) -> None:
    """Raise ModelLoadError if the model cannot be split so; the message names the possible splits."""
    if not 2 <= size <= MOST_RANKS:
        raise ModelLoadError(f"{size} ranks are not supported; use 2 to {MOST_RANKS}")
    if parallel == "tensor":
        _check_tensor(splits, size, split)
    else:
        _check_pipeline(splits, size, split)


def possibilities(splits: Splits) -> str:
    """Return all possible splits, in words."""
    found = []
    if splits.tensor_sizes:
        found.append(f"tensor over {_either(splits.tensor_sizes)} ranks")
    if splits.largest_pipeline >= 2:
        found.append(f"pipeline over 2 to {splits.largest_pipeline} ranks")
    return " or ".join(found) if found else "one machine only"


def _check_tensor(splits: Splits, size: int, split: Sequence[int] | None) -> None:
    possible = f"possible: {possibilities(splits)}"
    if splits.divisibles is None:
        raise ModelLoadError(f"mlx-lm has no tensor parallelism for {splits.model_type} models; {possible}")
    if split is not None:
        raise ModelLoadError("split applies only to a pipeline; with tensor parallelism all ranks have equal parts")
    failing = [each for each in splits.divisibles if each.count % size]
    if failing:
        named = ", ".join(f"{each.count} {each.what}" for each in failing[:_MOST_NAMED])
        more = f" and {len(failing) - _MOST_NAMED} more" if len(failing) > _MOST_NAMED else ""
        raise ModelLoadError(f"tensor parallelism over {size} ranks cannot divide {named}{more}; {possible}")


def _check_pipeline(splits: Splits, size: int, split: Sequence[int] | None) -> None:
    possible = f"possible: {possibilities(splits)}"
    if not splits.has_pipeline:
        raise ModelLoadError(f"mlx-lm has no pipeline parallelism for {splits.model_type} models; {possible}")
    if size > splits.num_layers:
        raise ModelLoadError(f"a pipeline of {size} ranks has more ranks than the model's {splits.num_layers} layers")
    if split is None:
        return
    even = ",".join(map(str, even_split(splits.num_layers, size)))
    given = ",".join(map(str, split))
    if len(split) != size:
        raise ModelLoadError(f"split {given} has {len(split)} ranks, not {size}; an even split is {even}")
    if min(split) < 1 or sum(split) != splits.num_layers:
        raise ModelLoadError(
            f"split {given} has {sum(split)} layers, but the model has {splits.num_layers}; each rank needs "
            f"at least 1, and an even split is {even}"
        )
    if tuple(split) != even_split(splits.num_layers, size) and not splits.has_uneven_pipeline:
        raise ModelLoadError(f"mlx-lm splits a {splits.model_type} model only evenly, {even}; omit split")


def _either(sizes: Sequence[int]) -> str:
    *first, last = map(str, sizes)
    return f"{', '.join(first)} or {last}" if first else last
