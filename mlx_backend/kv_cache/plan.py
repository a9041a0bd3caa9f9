"""Plans for a model's KV caches under a configuration: the bits and the size of every part.

Pure decisions on shapes and bits; no MLX, no model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import KVCacheConfig, KVCachePart, KVCacheReport
from mlx_backend.kv_cache import spec
from mlx_backend.kv_cache.allocation import allocated
from mlx_backend.kv_cache.grouping import MAX_GROUPS
from mlx_backend.kv_cache.spec import CacheKind

GROUP_SIZES = (32, 64, 128)
"""Group sizes that MLX's quantize takes."""
_MOST_SIZES = 8192
"""Number of lengths for which the bytes of a row are remembered."""
_SCALES_PER_GROUP = 2
"""A scale and a bias, each in the cache's own precision."""


@dataclass(frozen=True, slots=True)
class Precision:
    """`bits` per number, and a scale and a bias for each `group_size` of them."""

    bits: int
    group_size: int


@dataclass(frozen=True, slots=True)
class PartShape:
    """Keys or values of one token: numbers of `itemsize` bytes, [num_heads, dim]."""

    num_heads: int
    dim: int
    itemsize: int

    def num_bytes(self, precision: Precision | None) -> int:
        """Return the bytes per token, in full precision (None) or quantized."""
        if precision is None:
            return self.num_heads * self.dim * self.itemsize
        packed = self.dim * precision.bits // 8
        return self.num_heads * (packed + _SCALES_PER_GROUP * self.itemsize * self.dim // precision.group_size)


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Measured shape of one layer's cache (of one of them, if it has several).

    `kind`: its name in `spec.KINDS`, or the class name of a cache of no kind there, which cannot be quantized. A latent
    cache holds the compressed keys and values as `keys` and the rotary part of the keys as `values`.
    """

    kind: str
    keys: PartShape | None = None
    values: PartShape | None = None
    window: int | None = None
    """Number of last tokens that are kept; those of the last chunk are held beside them until the next step."""
    state_bytes: int = 0
    """Bytes per sequence, of any length: of a recurrent cache, or of one of another kind."""
    token_bytes: int = 0
    """Bytes that each token adds if there are neither keys nor values."""

    @property
    def is_known(self) -> bool:
        return self.kind in spec.KINDS

    @property
    def traits(self) -> CacheKind:
        """The row of its kind in the table."""
        return spec.kind_named(self.kind)


@dataclass(frozen=True, slots=True)
class CachePlan:
    """The precisions in which one cache is held. None: in the model's own precision."""

    shape: CacheShape
    keys: Precision | None = None
    values: Precision | None = None
    start: int = 0
    """Tokens at the beginning of a sequence that stay in full precision."""
    max_drafts: int = 0
    """Columns of a row beyond a sliding window, for drafts that may be refused."""

    @property
    def is_quantized(self) -> bool:
        return self.keys is not None or self.values is not None

    @property
    def bytes_per_token(self) -> int:
        """Bytes of a token past `start`."""
        parts = ((self.shape.keys, self.keys), (self.shape.values, self.values))
        return self.shape.token_bytes + sum(part.num_bytes(precision) for part, precision in parts if part is not None)


def max_groups(plans: Iterable[CachePlan]) -> int:
    """Return the number of groups that rows of such caches may lie in."""
    return MAX_GROUPS if spec.can_group(plan.shape.traits for plan in plans) else 1


def counted(plans: Iterable[CachePlan]) -> list[tuple[CachePlan, int]]:
    """Return every plan once, with the number of its caches, in order of first appearance.

    Equal plans are counted as one only if they are one object, as those of `plan_caches` are: comparing 60 layers takes
    longer than the computations on each.
    """
    plans = tuple(plans)
    by_id = {id(plan): plan for plan in plans}
    return [(by_id[each], count) for each, count in Counter(map(id, plans)).items()]


class RowSizes:
    """Bytes of a row of a batch, all layers together, by its number of tokens; rounded as its arrays are."""

    def __init__(self, plans: Iterable[CachePlan]) -> None:
        self._counts = Counter(plans)
        self._known: dict[int, int] = {}

    def __call__(self, num_tokens: int) -> int:
        size = self._known.get(num_tokens)
        if size is None:
            size = sum(count * row_bytes(plan, num_tokens) for plan, count in self._counts.items())
            if len(self._known) >= _MOST_SIZES:
                self._known = {}
            self._known[num_tokens] = size  # threads that submit requests call this, too: written once
        return size


def row_bytes(plan: CachePlan, num_tokens: int) -> int:
    """Return the bytes of one cache's row of a batch, allocated for this many tokens."""
    shape = plan.shape
    if not plan.bytes_per_token:
        return shape.state_bytes
    head = min(num_tokens, plan.start + 1) if plan.start else 0
    held = CachePlan(shape).bytes_per_token * min(allocated(head), plan.start + 1) if head else 0
    rest = num_tokens - plan.start
    columns = allocated(max(rest, 1)) if rest > 0 or not plan.start else 0
    if shape.window is not None:
        columns = min(columns, shape.window + plan.max_drafts)
    return shape.state_bytes + held + plan.bytes_per_token * columns


def plan_caches(shapes: Sequence[CacheShape], config: KVCacheConfig, max_drafts: int = 0) -> tuple[CachePlan, ...]:
    """Return a plan for each cache; equal plans are one object. `max_drafts`: drafts per row in a decode step.

    Raises ModelLoadError if the configuration is not possible, naming what is.
    """
    if not config.is_quantized:
        return _shared(CachePlan(shape, max_drafts=_beside(shape, max_drafts)) for shape in shapes)
    holding = [shape for shape in shapes if not shape.traits.is_state]
    _refuse_unquantizable(holding)
    if not holding:
        raise ModelLoadError("kv_cache.bits: this model keeps no keys and values, only recurrent state; leave it unset")
    _refuse_split_latent(holding, config)
    _refuse_group_size(holding, config)
    plans = _shared(
        CachePlan(shape) if shape.traits.is_state else _planned(shape, config, max_drafts) for shape in shapes
    )
    if config.start and not any(plan.start for plan in plans):
        raise ModelLoadError(
            "kv_cache.start: all of this model's layers attend to a sliding window, whose first tokens are soon "
            "overwritten; leave it unset"
        )
    return plans


def _shared(plans: Iterable[CachePlan]) -> tuple[CachePlan, ...]:
    known: dict[CachePlan, CachePlan] = {}
    return tuple(known.setdefault(plan, plan) for plan in plans)


def report(plans: Sequence[CachePlan], config: KVCacheConfig) -> tuple[KVCacheReport, ...]:
    """Report the plans, one entry for all equal caches, in order of first appearance."""
    return tuple(_reported(plan, count, config) for plan, count in Counter(plans).items())


def _beside(shape: CacheShape, max_drafts: int) -> int:
    return 0 if shape.window is None else max_drafts


def _planned(shape: CacheShape, config: KVCacheConfig, max_drafts: int) -> CachePlan:
    key_bits, value_bits = config.effective_key_bits, config.effective_value_bits
    if shape.traits.is_latent:
        value_bits = key_bits  # the rotary part belongs to the keys
    return CachePlan(
        shape,
        _precision(shape.keys, key_bits, config.effective_group_size),
        _precision(shape.values, value_bits, config.effective_group_size),
        0 if shape.window is not None else config.start or 0,
        _beside(shape, max_drafts),
    )


def _precision(part: PartShape | None, bits: int | None, group_size: int) -> Precision | None:
    if part is None or bits is None or part.dim % group_size:
        return None
    return Precision(bits, group_size)


def _refuse_unquantizable(shapes: Iterable[CacheShape]) -> None:
    for shape in shapes:
        if shape.keys is None or not shape.traits.is_quantizable:
            raise ModelLoadError(
                f"kv_cache.bits: this model has KV caches of a kind that cannot be quantized ({shape.kind}); "
                "leave it unset"
            )


def _refuse_split_latent(shapes: Iterable[CacheShape], config: KVCacheConfig) -> None:
    is_split = config.effective_key_bits != config.effective_value_bits
    if is_split and any(shape.traits.is_latent for shape in shapes):
        raise ModelLoadError(
            "kv_cache.key_bits and value_bits: this model's attention keeps keys and values as one latent, which has "
            "one precision; set kv_cache.bits instead"
        )


def _main_dims(shapes: Iterable[CacheShape], config: KVCacheConfig) -> set[int]:
    """Return the head sizes that groups must divide: of every part but the small rotary one of a latent cache."""
    dims: set[int] = set()
    for shape in shapes:
        if shape.keys is not None and config.effective_key_bits is not None:
            dims.add(shape.keys.dim)
        if shape.values is not None and config.effective_value_bits is not None and not shape.traits.is_latent:
            dims.add(shape.values.dim)
    return dims


def _refuse_group_size(shapes: Sequence[CacheShape], config: KVCacheConfig) -> None:
    group_size = config.effective_group_size
    dims = sorted(_main_dims(shapes, config))
    if all(dim % group_size == 0 for dim in dims):
        return
    common = math.gcd(*dims)
    fitting = [str(size) for size in GROUP_SIZES if common % size == 0]
    advice = f"use kv_cache.group_size {' or '.join(fitting)}" if fitting else "no group size does; leave it unset"
    sizes = " and ".join(map(str, dims))
    raise ModelLoadError(f"kv_cache.group_size {group_size} does not divide this model's heads of {sizes}; {advice}")


def _reported(plan: CachePlan, num_layers: int, config: KVCacheConfig) -> KVCacheReport:
    shape = plan.shape
    requested = (config.effective_key_bits, config.effective_value_bits)
    if shape.traits.is_latent:
        requested = (requested[0], requested[0])
    parts = [
        _reported_part(name, part, bits, precision, config.effective_group_size)
        for name, part, bits, precision in zip(
            shape.traits.part_names, (shape.keys, shape.values), requested, (plan.keys, plan.values), strict=True
        )
        if part is not None
    ]
    return KVCacheReport(
        kind=shape.kind,
        num_layers=num_layers,
        window=shape.window,
        parts=tuple(parts),
        start=plan.start,
        bytes_per_token=plan.bytes_per_token,
        full_bytes_per_token=CachePlan(shape).bytes_per_token,
        state_bytes=shape.state_bytes,
        note=_note(plan, config),
    )


def _reported_part(
    name: str, part: PartShape, requested: int | None, precision: Precision | None, group_size: int
) -> KVCachePart:
    refused = requested is not None and precision is None
    return KVCachePart(
        name=name,
        num_heads=part.num_heads,
        dim=part.dim,
        requested_bits=requested,
        bits=None if precision is None else precision.bits,
        group_size=None if precision is None else precision.group_size,
        note=f"in full precision: groups of {group_size} do not divide its {part.dim}" if refused else "",
    )


def _note(plan: CachePlan, config: KVCacheConfig) -> str:
    if not config.is_quantized:
        return ""
    if plan.shape.traits.is_state:
        return "recurrent state is not keys and values: it stays in full precision"
    if config.start and plan.shape.window is not None:
        return "kv_cache.start does not apply: a window soon overwrites its first tokens"
    return ""
