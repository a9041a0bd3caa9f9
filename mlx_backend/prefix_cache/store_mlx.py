"""MLXStore: blocks out of the KV caches of mlx-lm and of ours, and back into new ones.

Caches that can be cut anywhere are held in array groups: the same array of all layers with the same plan, for one
segment of positions, stacked into one, [layers, heads, tokens, …]. Caches that cannot (windows, recurrent state) are
held as snapshots, layer by layer. The handler of the cache's kind selects the arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import mlx.core as mx

from mlx_backend.core.step import BlockId, BlockRef, Chunk, PromptId, Restore, SequenceId, Span
from mlx_backend.kv_cache.allocation import allocated
from mlx_backend.kv_cache.batch import RowBatch, SingleBatch
from mlx_backend.kv_cache.handler import CacheHandler, of_row
from mlx_backend.kv_cache.plan import CachePlan

CUT = "by the token"
SNAPSHOT = "as snapshots"
_RUN = 32
"""Blocks that are stacked at once; that many are held twice for a moment."""
_GROUPS = "lanes"
"""Their name in the header of a block's file."""


@dataclass(frozen=True, slots=True)
class Columns:
    """A block's arrays: one per group (None: the group has no position of the block), and a snapshot's."""

    groups: tuple[mx.array | None, ...]
    state: tuple[mx.array, ...] = ()

    @property
    def arrays(self) -> list[mx.array]:
        return [array for array in (*self.groups, *self.state) if array is not None]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


@dataclass(frozen=True, slots=True)
class _Held:
    """Tokens [start, stop) of a block that begins at `block_start`."""

    columns: Columns
    block_start: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class ArrayGroup:
    """Array number `place` of a segment of `layers`, for positions from `first` on and before `end`."""

    layers: tuple[int, ...]
    segment: int
    place: int
    first: int
    end: int | None

    def within(self, start: int, stop: int) -> tuple[int, int]:
        """Return [start, stop) as columns of the group; empty if they do not overlap."""
        last = stop if self.end is None else min(stop, self.end)
        return max(start, self.first) - self.first, last - self.first


def how_kept(plans: Sequence[CachePlan]) -> tuple[tuple[str, str], ...]:
    """Return (kind, how it is kept) for each kind of cache that a model has, in order."""
    kinds = dict.fromkeys(plan.shape.traits for plan in plans)
    return tuple((kind.name, CUT if kind.is_cut else SNAPSHOT) for kind in kinds)


class MLXStore:
    """`core.blocks.BlockStore` of a model with caches, a layer's members in order, planned as in `plans`.

    `caches_of`: a prompt's single caches, None if it has none. `batch`: the rows that decode.
    """

    def __init__(
        self,
        plans: Sequence[CachePlan],
        caches_of: Callable[[PromptId], list[Any] | None],
        batch: Callable[[], RowBatch | SingleBatch],
    ) -> None:
        self._caches_of, self._batch = caches_of, batch
        self._blocks: dict[BlockId, Columns] = {}
        self._num_made = 0
        self._handlers = [plan.shape.traits.handler for plan in plans]
        self._snapshots = [place for place, plan in enumerate(plans) if not plan.shape.traits.is_cut]
        self._groups = _groups(plans)
        self.kinds = how_kept(plans)
        self.cuts = not self._snapshots
        cut = [plan for plan in plans if plan.shape.traits.is_cut]
        self.bytes_per_token = sum(CachePlan(p.shape).bytes_per_token if p.start else p.bytes_per_token for p in cut)
        self.state_bytes = sum(
            plan.shape.state_bytes + plan.bytes_per_token * (plan.shape.window or 0)
            for plan in plans
            if plan not in cut
        )

    # ---- taking ----

    def take(self, source: PromptId | SequenceId, spans: Sequence[Span]) -> tuple[BlockRef, ...]:
        """Copy spans. A prompt's blocks are computed when this returns; a row's are still being computed."""
        leaves, is_row = self._source(source)
        runs = [spans[first : first + _RUN] for first in range(0, len(spans), _RUN)]
        taken = [columns for run in runs for columns in self._taken(leaves, run)]
        (mx.async_eval if is_row else mx.eval)([array for columns in taken for array in columns.arrays])
        return tuple(map(self._hold, taken))

    def _hold(self, columns: Columns) -> BlockRef:
        self._num_made += 1
        self._blocks[self._num_made] = columns
        return BlockRef(self._num_made, columns.nbytes)

    def free(self, block: BlockId) -> None:
        del self._blocks[block]

    def _source(self, source: PromptId | SequenceId) -> tuple[list[tuple[Any, int | None]], bool]:
        """Return the caches of a prompt or a row, each with the row's place in it; and whether it is a row."""
        caches = self._caches_of(source)
        if caches is not None:
            return [(leaf, None) for leaf in _leaves(caches)], False
        batch = self._batch()
        row = batch.rows[[row.id for row in batch.rows].index(source)]  # ValueError is a bug: stored before they leave
        return list(batch.leaves_of(row)), isinstance(batch, RowBatch)

    def _taken(self, leaves: list[tuple[Any, int | None]], run: Sequence[Span]) -> list[Columns]:
        """Take spans that follow one another. They are stacked once and then cut: few operations for many layers."""
        by_group = [self._stack(group, leaves, run) for group in self._groups]
        taken = []
        for place, span in enumerate(run):
            state = self._snapshot(leaves, span.stop) if span.with_state else ()
            taken.append(Columns(tuple(blocks[place] for blocks in by_group), state))
        return taken

    def _snapshot(self, leaves: list[tuple[Any, int | None]], length: int) -> tuple[mx.array, ...]:
        taken = (self._handlers[layer].take_snapshot(*leaves[layer], length) for layer in self._snapshots)
        return tuple(_copied(array) for arrays in taken for array in arrays)

    def _stack(
        self, group: ArrayGroup, leaves: list[tuple[Any, int | None]], run: Sequence[Span]
    ) -> list[mx.array | None]:
        """Return each span's columns in a group."""
        first, last = group.within(run[0].start, run[-1].stop)
        if last <= first:
            return [None] * len(run)
        held = []
        for layer in group.layers:
            leaf, row = leaves[layer]
            array = self._handlers[layer].segment_arrays(leaf)[group.segment][group.place]
            held.append(of_row(array, row)[:, :, first:last])
        stacked = _stacked(held)
        if len(run) == 1:
            return [stacked]
        within = [group.within(span.start, span.stop) for span in run]
        return [_copied(stacked[:, :, a - first : b - first]) if b > a else None for a, b in within]

    # ---- restoring ----

    def restore(self, chunk: Chunk, restore: Restore, caches: list[Any]) -> None:
        """Append a chunk's blocks to a prompt's caches. Raises MLX's errors, and KeyError for a block that is gone."""
        leaves = _leaves(caches)
        pieces = [_Held(self._blocks[p.block], p.block_start, p.start, p.stop) for p in restore.pieces]
        for number in range(len(self._groups)):
            self._append(number, leaves, pieces, chunk.num_prompt_tokens)
        stop = pieces[-1].stop
        for layer in {layer for group in self._groups for layer in group.layers}:
            self._handlers[layer].set_length(leaves[layer], stop)
        if restore.with_state:
            self._set_state(leaves, pieces[-1].columns, stop)
        mx.eval([leaf.state for leaf in leaves if not leaf.empty()])

    def _append(self, number: int, leaves: list[Any], pieces: Sequence[_Held], num_tokens: int) -> None:
        group = self._groups[number]
        parts = []
        for piece in pieces:
            first, last = group.within(piece.start, piece.stop)
            offset, _ = group.within(piece.block_start, piece.stop)
            if last > first:
                parts.append(_columns_of(piece, number)[:, :, first - offset : last - offset])
        if not parts:
            return
        columns = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)
        start, stop = group.within(pieces[0].start, pieces[-1].stop)
        most = allocated(num_tokens - group.first) if group.end is None else group.end - group.first
        for place, layer in enumerate(group.layers):
            _write(self._handlers[layer], leaves[layer], group, columns[place : place + 1], start, stop, most)

    def _set_state(self, leaves: list[Any], columns: Columns, length: int) -> None:
        arrays = list(columns.state)
        for place in self._snapshots:
            self._handlers[place].restore_snapshot(leaves[place], arrays, length)

    # ---- as bytes ----

    def dump(self, block: BlockId) -> tuple[Any, list[memoryview]]:
        columns = self._blocks[block]
        mx.eval(columns.arrays)  # of a row that left: computed long since
        described = {
            _GROUPS: [None if array is None else _described(array) for array in columns.groups],
            "state": [_described(array) for array in columns.state],
        }
        return described, [memoryview(array.reshape(-1).view(mx.uint8)) for array in columns.arrays if array.size]

    def load(self, arrays: Any, data: memoryview) -> BlockRef:
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

        groups = [None if described is None else read(described) for described in arrays[_GROUPS]]
        if len(groups) != len(self._groups):
            raise ValueError("it is of other layers")
        return self._hold(Columns(tuple(groups), tuple(read(described) for described in arrays["state"])))


def _groups(plans: Sequence[CachePlan]) -> list[ArrayGroup]:
    layers: dict[CachePlan, list[int]] = {}
    for place, plan in enumerate(plans):
        if plan.shape.traits.is_cut:
            layers.setdefault(plan, []).append(place)
    return [
        ArrayGroup(tuple(alike), number, place, segment.first, segment.end)
        for plan, alike in layers.items()
        for number, segment in enumerate(plan.shape.traits.handler.segments(plan))
        for place in range(segment.num_arrays)
    ]


def _columns_of(piece: _Held, number: int) -> mx.array:
    array = piece.columns.groups[number]
    assert array is not None, "the group holds tokens of this block"
    return array


def _leaves(caches: Iterable[Any]) -> list[Any]:
    """Return the caches of all layers, or the rows of all: of a layer with several, each."""
    found: list[Any] = []
    for cache in caches:
        members = getattr(cache, "caches", None)
        found += [cache] if members is None else _leaves(members)
    return found


def _stacked(parts: list[mx.array]) -> mx.array:
    return _copied(parts[0]) if len(parts) == 1 else mx.concatenate(parts, axis=0)


def _copied(array: mx.array) -> mx.array:
    """Always copy: a slice keeps the whole array alive, and an array with a second owner is not written in place."""
    return mx.take(array, mx.arange(array.shape[0]), axis=0)


def _write(
    handler: CacheHandler, leaf: Any, group: ArrayGroup, columns: mx.array, start: int, stop: int, most: int
) -> None:
    """Put columns into one array of a cache, at [start, stop); room for `most` is made at once."""
    arrays = handler.segment_arrays(leaf)[group.segment]
    held = arrays[group.place] if group.place < len(arrays) else None
    if held is None or held.shape[2] < stop:
        shape = (*columns.shape[:2], max(most, stop), columns.shape[3])
        grown = mx.zeros(shape, dtype=columns.dtype)
        if held is not None:
            grown[:, :, :start] = held[:, :, :start]
        held = grown
    held[:, :, start:stop] = columns
    handler.set_array(leaf, group.segment, group.place, held)


def _described(array: mx.array) -> tuple[str, tuple[int, ...]]:
    return str(array.dtype).removeprefix("mlx.core."), array.shape
