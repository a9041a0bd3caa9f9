"""From a model's own caches to the ones that are used: their shapes, quantized single caches, and rows of any kind."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models import cache as mlx_lm_cache

from mlx_backend.kv_cache import spec
from mlx_backend.kv_cache.codec import FULL, Codec, ColumnForm, QuantizedCodec
from mlx_backend.kv_cache.plan import CachePlan, CacheShape, PartShape, Precision
from mlx_backend.kv_cache.quantized import QuantizedKV, StartKV
from mlx_backend.kv_cache.rows import RowLengths, Rows
from mlx_backend.kv_cache.start import StartRows


def read_shapes(caches: Sequence[Any], config: Mapping[str, Any]) -> tuple[CacheShape, ...]:
    """The shape of every cache, a layer's members in order, from caches that a forward pass was built with.

    Nothing is computed: the arrays have their shapes before. `config` is the model's, which tells latent attention.
    """
    return tuple(_measured(leaf, config) for cache in caches for leaf in spec.leaves(cache))


def _measured(cache: Any, config: Mapping[str, Any]) -> CacheShape:
    name = type(cache).__name__
    kind = spec.KINDS[name].name if name in spec.KINDS else name
    if isinstance(cache, mlx_lm_cache.ArraysCache):
        return CacheShape(kind, state_bytes=sum(array.nbytes for array in cache.cache if array is not None))
    if name not in spec.KINDS:
        return _of_another_kind(cache, name)
    if cache.keys is None:
        return CacheShape(kind)
    keys, values = _part(cache.keys), _part(cache.values)
    latent = (config.get("kv_lora_rank"), config.get("qk_rope_head_dim"))
    if keys.num_heads == 1 and (keys.dim, values.dim) == latent:
        return CacheShape("latent", keys, values)
    return CacheShape(kind, keys, values, window=getattr(cache, "max_size", None))


def _of_another_kind(cache: Any, name: str) -> CacheShape:
    """A cache that is neither batched nor quantized here, but held and therefore counted."""
    keys, values = getattr(cache, "keys", None), getattr(cache, "values", None)
    if not all(isinstance(part, mx.array) and part.ndim == 4 for part in (keys, values)):
        return CacheShape(name, state_bytes=int(getattr(cache, "nbytes", 0)))
    chunk = getattr(cache, "chunk_size", None)  # of attention in chunks; a step more is allocated as it moves on
    window = getattr(cache, "max_size", None) if chunk is None else chunk + cache.step
    return CacheShape(name, _part(keys), _part(values), window=window)


def _part(array: mx.array) -> PartShape:
    return PartShape(num_heads=array.shape[1], dim=array.shape[3], itemsize=array.itemsize)


def quantized(caches: Sequence[Any], plans: Sequence[CachePlan], is_dequantized: bool = False) -> list[Any]:
    """Empty caches of one sequence: those of `caches`, with ours in the place of what the plans quantize.

    `is_dequantized`: models get arrays, never quantized columns.
    """
    remaining = iter(plans)
    return [_replaced(cache, remaining, is_dequantized) for cache in caches]


def _replaced(cache: Any, plans: Iterator[CachePlan], is_dequantized: bool) -> Any:
    if isinstance(cache, mlx_lm_cache.CacheList):
        return mlx_lm_cache.CacheList(*(_replaced(member, plans, is_dequantized) for member in cache.caches))
    plan = next(plans)
    if not plan.is_quantized:
        return cache
    # Latent attention expands a chunk's latents itself, and multiplies the rotary part itself.
    forms: tuple[ColumnForm, ColumnForm] = ("quantized", "quantized")
    if plan.shape.kind == "latent":
        forms = ("quantized-in-decode", "array")
    if is_dequantized:
        forms = ("array", "array")
    keys, values = _codec(plan.keys, forms[0]), _codec(plan.values, forms[1])
    if plan.start:
        return StartKV(plan.start, keys, values)
    return QuantizedKV(keys, values, plan.shape.window)


def _codec(precision: Precision | None, form: ColumnForm) -> Codec:
    return FULL if precision is None else QuantizedCodec(precision, form)


class ListRows:
    """A layer with several caches, as mlx-lm's CacheList."""

    def __init__(self, *members: Rows) -> None:
        self.caches = members

    def __getitem__(self, index: int) -> Rows:
        return self.caches[index]

    def reserve(self, num_rows: int, num_tokens: int) -> None:
        for member in self.caches:
            member.reserve(num_rows, num_tokens)

    def join(self, single: Any, length: int) -> None:
        for index, member in enumerate(self.caches):
            member.join(None if single is None else single[index], length)

    def leave(self, row: int) -> None:
        for member in self.caches:
            member.leave(row)

    def fit(self, num_rows: int, num_tokens: int) -> None:
        for member in self.caches:
            member.fit(num_rows, num_tokens)

    @property
    def nbytes(self) -> int:
        return sum(member.nbytes for member in self.caches)


def build_rows(cache: Any, lengths: RowLengths) -> Rows:
    """Rows of the kind of `cache`, an empty cache of one sequence."""
    if isinstance(cache, mlx_lm_cache.CacheList):
        return ListRows(*(build_rows(member, lengths) for member in cache.caches))
    if isinstance(cache, StartKV):
        return StartRows(lengths, cache.start, *cache.codecs)
    name = type(cache).__name__
    size: tuple[Any, ...] = ()
    if isinstance(cache, QuantizedKV):
        name = "KVCache" if cache.window is None else "RotatingKVCache"
        size = cache.codecs if cache.window is None else (cache.window, *cache.codecs)
    elif isinstance(cache, mlx_lm_cache.RotatingKVCache):
        size = (cache.max_size,)
    elif isinstance(cache, mlx_lm_cache.ArraysCache):
        size = (len(cache.cache),)
    kind = spec.KINDS[name]
    rows: Rows = getattr(importlib.import_module(kind.module), kind.rows_class)(lengths, *size)
    return rows


def fork(cache: Any) -> Any:
    """A second cache with the same content. The arrays are shared until one of the two writes to them."""
    if isinstance(cache, QuantizedKV | StartKV):
        return cache.fork()
    if isinstance(cache, mlx_lm_cache.CacheList):
        return mlx_lm_cache.CacheList(*map(fork, cache.caches))
    return type(cache).from_state(_share(cache.state))


def _share(state: Any) -> Any:
    if isinstance(state, mx.array):
        return mx.array(state)
    if isinstance(state, list | tuple):
        return type(state)(_share(member) for member in state)
    return state
