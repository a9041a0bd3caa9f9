"""Conversion of a model's own caches to those used here: shapes, quantized single caches, rows, and forks.

The handler of the cache's kind does the work; a layer with several caches is taken apart here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models import cache as mlx_lm_cache

from mlx_backend.kv_cache import spec
from mlx_backend.kv_cache.codec import FULL, Codec, ColumnForm, QuantizedCodec
from mlx_backend.kv_cache.handler import part_shape
from mlx_backend.kv_cache.plan import CachePlan, CacheShape, Precision
from mlx_backend.kv_cache.rows import Positions, RowLengths, Rows, States


def read_shapes(caches: Sequence[Any], config: Mapping[str, Any]) -> tuple[CacheShape, ...]:
    """Return the shape of every cache, a layer's members in order, from caches that a forward pass was built with.

    Nothing is computed: arrays have their shapes before that. `config` is the model's; it identifies latent attention.
    """
    return tuple(_read_shape(leaf, config) for cache in caches for leaf in spec.leaves(cache))


def _read_shape(cache: Any, config: Mapping[str, Any]) -> CacheShape:
    for kind in spec.kinds_of(cache):
        shape = kind.handler.read_shape(kind.name, cache, config)
        if shape is not None:
            return shape
    return _read_unknown(cache)


def _read_unknown(cache: Any) -> CacheShape:
    """Return the shape of a cache of no kind in the table, which is held and so counts; its kind is its class."""
    name = type(cache).__name__
    keys, values = getattr(cache, "keys", None), getattr(cache, "values", None)
    if not all(isinstance(part, mx.array) and part.ndim == 4 for part in (keys, values)):
        return CacheShape(name, state_bytes=int(getattr(cache, "nbytes", 0)))
    return CacheShape(name, part_shape(keys), part_shape(values), window=getattr(cache, "max_size", None))


def quantized(caches: Sequence[Any], plans: Sequence[CachePlan], is_dequantized: bool = False) -> list[Any]:
    """Return empty caches of one sequence: those of `caches`, with ours wherever a plan quantizes.

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
    handler = plan.shape.traits.handler
    forms: tuple[ColumnForm, ColumnForm] = ("array", "array") if is_dequantized else handler.column_forms
    return handler.build_quantized(plan, _codec(plan.keys, forms[0]), _codec(plan.values, forms[1]))


def _codec(precision: Precision | None, form: ColumnForm) -> Codec:
    return FULL if precision is None else QuantizedCodec(precision, form)


def build_rows(cache: Any, lengths: RowLengths) -> Rows:
    """Build rows of the kind of `cache`, an empty cache of one sequence."""
    return spec.kinds_of(cache)[-1].handler.build_rows(cache, lengths)


def build_states(cache: Any, positions: Positions) -> States:
    """Build states of the kind of `cache`, an empty cache of one sequence."""
    return spec.kinds_of(cache)[-1].handler.build_states(cache, positions)


def fork(cache: Any) -> Any:
    """Return a second cache with the same content. Both share the arrays until one of them is written to."""
    if hasattr(cache, "fork"):  # ours; mlx-lm's have a state from which to build another
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
