"""RowBatch: the KV caches of all layers for the sequences that decode together.

`set_rows` says who decodes next; the batch works out who leaves and who joins.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models import cache as mlx_lm_cache

from mlx_backend.kv_cache import spec
from mlx_backend.kv_cache.rows import RowLengths, Rows
from mlx_backend.sequence import Sequence as Row


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


class RowBatch:
    """Rows of any kind in the table. `caches` goes to the model, a member per layer."""

    def __init__(self, template: Sequence[Any]) -> None:
        """`template`: the empty caches that mlx-lm makes for one sequence of this model."""
        self._lengths = RowLengths()
        self.rows: list[Row] = []
        self.caches: list[Any] = [_build_rows(cache, self._lengths) for cache in template]

    def set_rows(self, sequences: Sequence[Row]) -> None:
        """Make `rows` the given sequences, in an order of the batch's own choosing."""
        wanted = set(sequences)
        self._drop([row for row, sequence in enumerate(self.rows) if sequence not in wanted])
        present = set(self.rows)
        self._join([sequence for sequence in sequences if sequence not in present])

    def advance(self) -> None:
        """The forward pass of a step has been built: every row holds one token more."""
        self._lengths.advance()

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches)

    def _drop(self, leaving: list[int]) -> None:
        for row in reversed(leaving):
            for cache in self.caches:
                cache.leave(row)
            self._lengths.leave(row)
            self.rows[row] = self.rows[-1]
            self.rows.pop()
        if leaving and self.rows:
            for cache in self.caches:
                cache.fit(len(self.rows), self._lengths.longest + 1)

    def _join(self, joining: list[Row]) -> None:
        if not joining:
            return
        longest = max(self._lengths.longest, *(sequence.num_computed_tokens for sequence in joining)) + 1
        for layer, cache in enumerate(self.caches):
            cache.reserve(len(self.rows) + len(joining), longest)
            for sequence in joining:
                state = sequence.prefill.state
                cache.join(None if state is None else state[layer], sequence.num_computed_tokens)
        for sequence in joining:
            self.rows.append(sequence)
            self._lengths.join(sequence.num_computed_tokens)


class SingleBatch:
    """The batch of a model whose KV cache cannot be batched: one row, in mlx-lm's own caches."""

    def __init__(self, make_caches: Callable[[], list[Any]]) -> None:
        self._make_caches = make_caches
        self.rows: list[Row] = []
        self.caches: list[Any] = []

    def set_rows(self, sequences: Sequence[Row]) -> None:
        (sequence,) = sequences
        if self.rows == [sequence]:
            return
        prefill = sequence.prefill
        if prefill.state is None:
            self.caches = self._make_caches()
        else:
            self.caches = [fork(cache) for cache in prefill.state] if prefill.is_wanted else prefill.state
        self.rows = [sequence]

    def advance(self) -> None:
        """mlx-lm's caches count for themselves."""

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches if not cache.empty())


def fork(cache: Any) -> Any:
    """A second cache with the same content. The arrays are shared until one of the two writes to them."""
    return type(cache).from_state(_share(cache.state))


def _share(state: Any) -> Any:
    if isinstance(state, mx.array):
        return mx.array(state)
    if isinstance(state, list | tuple):
        return type(state)(_share(member) for member in state)
    return state


def _build_rows(cache: Any, lengths: RowLengths) -> Rows:
    if isinstance(cache, mlx_lm_cache.CacheList):
        return ListRows(*(_build_rows(member, lengths) for member in cache.caches))
    kind = spec.KINDS[type(cache).__name__]
    rows_class = getattr(importlib.import_module(kind.module), kind.rows_class)
    size: tuple[int, ...] = ()
    if isinstance(cache, mlx_lm_cache.RotatingKVCache):
        size = (cache.max_size,)
    elif isinstance(cache, mlx_lm_cache.ArraysCache):
        size = (len(cache.cache),)
    rows: Rows = rows_class(lengths, *size)
    return rows
