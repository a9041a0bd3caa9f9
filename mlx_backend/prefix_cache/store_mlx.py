"""MLXStore: blocks out of the KV caches of mlx-lm and of ours, and back into new ones.

What can be cut anywhere lies in lanes: the same array of all layers that are held alike, for one stretch of positions,
stacked into one, [layers, heads, tokens, …]. What cannot (windows, recurrent state) is a snapshot, layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import mlx.core as mx
from mlx_lm.models import cache as mlx_lm_cache

from mlx_backend.errors import failed
from mlx_backend.kv_cache.allocation import allocated
from mlx_backend.kv_cache.batch import RowBatch, SingleBatch
from mlx_backend.kv_cache.plain import PlainRows
from mlx_backend.kv_cache.plan import CachePlan, Precision
from mlx_backend.kv_cache.quantized import QuantizedKV, StartKV
from mlx_backend.kv_cache.recurrent import StateRows
from mlx_backend.kv_cache.rotating import RingRows
from mlx_backend.kv_cache.start import StartRows
from mlx_backend.prefix_cache.store import Piece, Span
from mlx_backend.sequence import Prefill
from mlx_backend.sequence import Sequence as Row

CUT = "by the token"
SNAPSHOT = "as snapshots"
_RUN = 32
"""Blocks that are stacked at once; so many are held twice for a moment."""


@dataclass(frozen=True, slots=True)
class Columns:
    """A block's arrays: one per lane (None: the lane has no position of the block), and a snapshot's."""

    lanes: tuple[mx.array | None, ...]
    state: tuple[mx.array, ...] = ()

    @property
    def arrays(self) -> list[mx.array]:
        return [array for array in (*self.lanes, *self.state) if array is not None]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


@dataclass(frozen=True, slots=True)
class _Lane:
    """Array number `array` of `layers`, for positions from `first` on and before `end`."""

    layers: tuple[int, ...]
    stretch: int
    array: int
    first: int
    end: int | None

    def within(self, start: int, stop: int) -> tuple[int, int]:
        """[start, stop) as columns of the lane; empty where they have nothing in common."""
        last = stop if self.end is None else min(stop, self.end)
        return max(start, self.first) - self.first, last - self.first


def how_kept(plans: Sequence[CachePlan]) -> tuple[tuple[str, str], ...]:
    """(kind, how it is kept) for each kind of cache that a model has, in order."""
    kinds = dict.fromkeys(plan.shape.kind for plan in plans)
    return tuple((kind, CUT if kind in ("plain", "latent") else SNAPSHOT) for kind in kinds)


class MLXStore:
    """Implements `store.Store` for a model whose caches, a layer's members in order, are as `plans` say."""

    def __init__(
        self,
        plans: Sequence[CachePlan],
        make_caches: Callable[[], list[Any]],
        batch: Callable[[], RowBatch | SingleBatch],
    ) -> None:
        self._make_caches, self._batch = make_caches, batch
        self._snapshots = [place for place, plan in enumerate(plans) if plan.shape.kind not in ("plain", "latent")]
        self._lanes = _lanes(plans)
        self.kinds = how_kept(plans)
        self.cuts = not self._snapshots
        cut = [plan for plan in plans if plan.shape.kind in ("plain", "latent")]
        self.bytes_per_token = sum(CachePlan(p.shape).bytes_per_token if p.start else p.bytes_per_token for p in cut)
        self.state_bytes = sum(
            plan.shape.state_bytes + plan.bytes_per_token * (plan.shape.window or 0)
            for plan in plans
            if plan not in cut
        )

    # ---- taking ----

    def take(self, source: Prefill | Row, spans: Sequence[Span]) -> list[Columns]:
        """As `store.Store`. Of a prompt its blocks are computed when this returns; of a row, on their way."""
        leaves, row = self._source(source)
        runs = [spans[first : first + _RUN] for first in range(0, len(spans), _RUN)]
        taken = [columns for run in runs for columns in self._taken(leaves, row, run)]
        (mx.eval if row is None else mx.async_eval)([array for columns in taken for array in columns.arrays])
        return taken

    def _source(self, source: Prefill | Row) -> tuple[list[Any], int | None]:
        """The caches that hold a sequence, a leaf each, and its row in them."""
        if isinstance(source, Prefill):
            return _leaves(source.state), None
        batch = self._batch()
        row = batch.rows.index(source)  # ValueError is a bug: rows are kept before they leave
        return _leaves(batch.caches), row if isinstance(batch, RowBatch) else None

    def _taken(self, leaves: list[Any], row: int | None, run: Sequence[Span]) -> list[Columns]:
        """Of spans that follow one another. Stacked once and then cut: few operations for many layers."""
        by_lane = [self._stack(lane, leaves, row, run) for lane in self._lanes]
        taken = []
        for place, span in enumerate(run):
            state = self._snapshot(leaves, row, span.stop) if span.with_state else ()
            taken.append(Columns(tuple(blocks[place] for blocks in by_lane), state))
        return taken

    def _snapshot(self, leaves: list[Any], row: int | None, length: int) -> tuple[mx.array, ...]:
        held = (array for layer in self._snapshots for array in _snapshot(leaves[layer], row, length))
        return tuple(map(_copied, held))

    def _stack(self, lane: _Lane, leaves: list[Any], row: int | None, run: Sequence[Span]) -> list[mx.array | None]:
        """Of each span its columns in a lane."""
        first, last = lane.within(run[0].start, run[-1].stop)
        if last <= first:
            return [None] * len(run)
        held = (_stretches(leaves[layer])[lane.stretch][lane.array] for layer in lane.layers)
        stacked = _stacked([_of_row(array, row)[:, :, first:last] for array in held])
        if len(run) == 1:
            return [stacked]
        within = [lane.within(span.start, span.stop) for span in run]
        return [_copied(stacked[:, :, a - first : b - first]) if b > a else None for a, b in within]

    # ---- putting back ----

    def restore(self, prefill: Prefill, pieces: Sequence[Piece], *, with_state: bool) -> None:
        try:
            if prefill.state is None:
                prefill.state = self._make_caches()
            leaves = _leaves(prefill.state)
            for number in range(len(self._lanes)):
                self._append(number, leaves, pieces, prefill.num_tokens)
            stop = pieces[-1].stop
            for layer in {layer for lane in self._lanes for layer in lane.layers}:
                _set_offset(leaves[layer], stop)
            if with_state:
                self._set_state(leaves, pieces[-1].payload, stop)
            held = [leaf for leaf in leaves if not leaf.empty()]
            mx.eval([leaf.state for leaf in held])
        except (RuntimeError, ValueError, TypeError, IndexError, MemoryError) as error:
            prefill.state = None
            raise failed("restore", error, prefill.sequences) from error

    def _append(self, number: int, leaves: list[Any], pieces: Sequence[Piece], num_tokens: int) -> None:
        lane = self._lanes[number]
        parts = []
        for piece in pieces:
            first, last = lane.within(piece.start, piece.stop)
            offset, _ = lane.within(piece.block_start, piece.stop)
            if last > first:
                parts.append(_lane_of(piece, number)[:, :, first - offset : last - offset])
        if not parts:
            return
        columns = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)
        start, stop = lane.within(pieces[0].start, pieces[-1].stop)
        most = allocated(num_tokens - lane.first) if lane.end is None else lane.end - lane.first
        for place, layer in enumerate(lane.layers):
            _write(leaves[layer], lane, columns[place : place + 1], start, stop, most)

    def _set_state(self, leaves: list[Any], payload: Any, length: int) -> None:
        arrays = list(payload.state)
        for place in self._snapshots:
            leaf = leaves[place]
            if isinstance(leaf, mlx_lm_cache.ArraysCache):
                leaf.cache = [arrays.pop(0) for _ in leaf.cache]
            elif isinstance(leaf, QuantizedKV):
                num_arrays = sum(codec.num_arrays for codec in leaf.codecs)
                leaf.arrays, leaf.offset = [arrays.pop(0) for _ in range(num_arrays)], length
            else:
                leaf.keys, leaf.values = arrays.pop(0), arrays.pop(0)
                leaf.offset, leaf._idx = length, leaf.keys.shape[2]

    # ---- as bytes ----

    def dump(self, payload: Any) -> tuple[Any, list[memoryview]]:
        mx.eval(payload.arrays)  # of a row that left: computed long since
        described = {
            "lanes": [None if array is None else _described(array) for array in payload.lanes],
            "state": [_described(array) for array in payload.state],
        }
        return described, [memoryview(array.reshape(-1).view(mx.uint8)) for array in payload.arrays if array.size]

    def load(self, arrays: Any, data: memoryview) -> Columns:
        position = 0

        def read(described: Any) -> mx.array:
            nonlocal position
            dtype, shape = getattr(mx, described[0]), described[1]
            size = reduce(lambda a, b: a * b, shape, 1) * dtype.size
            part = data[position : position + size]
            if part.nbytes != size:
                raise ValueError("its arrays are not what its header says")
            position += size
            return mx.array(part).view(dtype).reshape(shape)

        lanes = [None if described is None else read(described) for described in arrays["lanes"]]
        if len(lanes) != len(self._lanes):
            raise ValueError("it is of other layers")
        return Columns(tuple(lanes), tuple(read(described) for described in arrays["state"]))


def _lanes(plans: Sequence[CachePlan]) -> list[_Lane]:
    layers: dict[CachePlan, list[int]] = {}
    for place, plan in enumerate(plans):
        if plan.shape.kind in ("plain", "latent"):
            layers.setdefault(plan, []).append(place)
    lanes: list[_Lane] = []
    for plan, places in layers.items():
        held = _num_arrays(plan.keys) + _num_arrays(plan.values)
        stretches = [(held, 0, None)] if not plan.start else [(2, 0, plan.start), (held, plan.start, None)]
        for stretch, (num_arrays, first, end) in enumerate(stretches):
            lanes += [_Lane(tuple(places), stretch, array, first, end) for array in range(num_arrays)]
    return lanes


def _num_arrays(precision: Precision | None) -> int:
    return 1 if precision is None else 3


def _lane_of(piece: Piece, number: int) -> mx.array:
    assert isinstance(piece.payload, Columns), "blocks of another store"
    array = piece.payload.lanes[number]
    assert array is not None, "the lane holds tokens of this block"
    return array


def _leaves(caches: Iterable[Any]) -> list[Any]:
    """The caches of all layers, or the rows of all: of a layer with several, each."""
    found: list[Any] = []
    for cache in caches:
        members = getattr(cache, "caches", None)
        found += [cache] if members is None else _leaves(members)
    return found


def _stretches(leaf: Any) -> list[list[mx.array]]:
    """The arrays of a cache that can be cut, stretch by stretch."""
    if isinstance(leaf, StartKV | StartRows):
        return [leaf.head.arrays, leaf.rest.arrays]
    if isinstance(leaf, QuantizedKV | PlainRows):
        return [leaf.arrays]
    return [[leaf.keys, leaf.values]]


def _of_row(array: mx.array, row: int | None) -> mx.array:
    return array if row is None else array[row : row + 1]


def _stacked(parts: list[mx.array]) -> mx.array:
    return _copied(parts[0]) if len(parts) == 1 else mx.concatenate(parts, axis=0)


def _copied(array: mx.array) -> mx.array:
    """A copy for sure: a slice keeps the whole array alive, and what has a second owner is not written in place."""
    return mx.take(array, mx.arange(array.shape[0]), axis=0)


def _write(leaf: Any, lane: _Lane, columns: mx.array, start: int, stop: int, most: int) -> None:
    """Put columns into one array of a cache, at [start, stop); room for `most` is made at once."""
    arrays = _stretches(leaf)[lane.stretch]
    held = arrays[lane.array] if lane.array < len(arrays) else None
    if held is None or held.shape[2] < stop:
        shape = (*columns.shape[:2], max(most, stop), columns.shape[3])
        grown = mx.zeros(shape, dtype=columns.dtype)
        if held is not None:
            grown[:, :, :start] = held[:, :, :start]
        held = grown
    held[:, :, start:stop] = columns
    if isinstance(leaf, mlx_lm_cache.KVCache):
        setattr(leaf, ("keys", "values")[lane.array], held)
    elif lane.array < len(arrays):
        arrays[lane.array] = held
    else:
        arrays.append(held)


def _set_offset(leaf: Any, length: int) -> None:
    if isinstance(leaf, StartKV):
        leaf.head.offset, leaf.rest.offset = min(length, leaf.start), max(0, length - leaf.start)
    else:
        leaf.offset = length


def _snapshot(leaf: Any, row: int | None, length: int) -> list[mx.array]:
    """The arrays of a cache that cannot be cut, as they are after `length` tokens; a window's in order of positions."""
    if isinstance(leaf, StateRows):
        return [_of_row(array, row) for array in leaf._state if array is not None]
    if isinstance(leaf, mlx_lm_cache.ArraysCache):
        return [array for array in leaf.cache if array is not None]
    if isinstance(leaf, RingRows):
        return [_unrolled(_of_row(array, row), leaf, length) for array in leaf.arrays]
    if isinstance(leaf, QuantizedKV):
        return leaf.content(length)
    kept = min(length, leaf.max_size)
    # `_temporal_order` is RotatingKVCache's own undoing of its rotation
    return [leaf._temporal_order(part)[..., -kept:, :] for part in (leaf.keys, leaf.values)]


def _unrolled(array: mx.array, ring: RingRows, length: int) -> mx.array:
    spans = ring._spans(length, min(length, ring.width))
    return mx.concatenate([array[:, :, column : column + stop - start] for start, stop, column in spans], axis=2)


def _described(array: mx.array) -> tuple[str, tuple[int, ...]]:
    return str(array.dtype).removeprefix("mlx.core."), array.shape
