"""RowBatch: the KV caches of all layers for the sequences that decode together.

`set_rows` says who decodes next; the batch works out who leaves and who joins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from mlx_backend.core.row import Row
from mlx_backend.kv_cache.allocation import tokens_soon
from mlx_backend.kv_cache.build import build_rows, fork
from mlx_backend.kv_cache.rows import RowLengths


class RowBatch:
    """Rows of any kind in the table. `caches` goes to the model, a member per layer."""

    def __init__(self, template: Sequence[Any]) -> None:
        """`template`: the empty caches of one sequence of this model, mlx-lm's or ours."""
        self._lengths = RowLengths()
        self.rows: list[Row] = []
        self.caches: list[Any] = [build_rows(cache, self._lengths) for cache in template]

    def set_rows(self, rows: Sequence[Row]) -> None:
        """Make `rows` the given ones, in an order of the batch's own choosing. New ones give up their `caches`."""
        wanted = set(rows)
        self._drop([place for place, row in enumerate(self.rows) if row not in wanted])
        if self.rows:  # the budget counts what the rows of now come to soon, and nothing more may be held
            most = max(self._lengths.longest + 1, *map(_tokens_soon, rows))
            for cache in self.caches:
                cache.fit(len(rows), most)
        present = set(self.rows)
        self._join([row for row in rows if row not in present])

    def advance(self) -> None:
        """The forward pass of a step has been built: every row holds one token more."""
        self._lengths.advance()

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches)

    def _drop(self, leaving: list[int]) -> None:
        for place in reversed(leaving):
            if place != len(self.rows) - 1:
                mx.eval([cache.copy_last() for cache in self.caches])
            for cache in self.caches:
                cache.leave(place)
            self._lengths.leave(place)
            self.rows[place] = self.rows[-1]
            self.rows.pop()

    def _join(self, joining: list[Row]) -> None:
        if not joining:
            return
        longest = max(self._lengths.longest, *(row.num_computed_tokens for row in joining)) + 1
        for layer, cache in enumerate(self.caches):
            cache.reserve(len(self.rows) + len(joining), longest)
            for row in joining:
                cache.join(None if row.caches is None else row.caches[layer], row.num_computed_tokens)
        for row in joining:
            self.rows.append(row)
            self._lengths.join(row.num_computed_tokens)
            row.caches = None


def _tokens_soon(row: Row) -> int:
    return tokens_soon(len(row.prompt_ids), row.num_started_tokens, row.new.max_num_tokens)


class SingleBatch:
    """The batch of a model whose KV cache cannot be batched: one row, in single caches."""

    def __init__(self, make_caches: Callable[[], list[Any]]) -> None:
        self._make_caches = make_caches
        self.rows: list[Row] = []
        self.caches: list[Any] = []

    def set_rows(self, rows: Sequence[Row]) -> None:
        (row,) = rows
        if self.rows == [row]:
            return
        if row.caches is None:
            self.caches = self._make_caches()
        else:
            self.caches = row.caches if row.is_last else [fork(cache) for cache in row.caches]
        row.caches = None
        self.rows = [row]

    def advance(self) -> None:
        """Single caches count for themselves."""

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches if not cache.empty())
