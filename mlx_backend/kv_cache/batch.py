"""RowBatch: the KV caches of all layers for the sequences that decode together.

`set_rows` says who decodes next; the batch works out who leaves and who joins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlx_backend.kv_cache.build import build_rows, fork
from mlx_backend.kv_cache.rows import RowLengths
from mlx_backend.sequence import Sequence as Row


class RowBatch:
    """Rows of any kind in the table. `caches` goes to the model, a member per layer."""

    def __init__(self, template: Sequence[Any]) -> None:
        """`template`: the empty caches of one sequence of this model, mlx-lm's or ours."""
        self._lengths = RowLengths()
        self.rows: list[Row] = []
        self.caches: list[Any] = [build_rows(cache, self._lengths) for cache in template]

    def set_rows(self, sequences: Sequence[Row]) -> None:
        """Make `rows` the given sequences, in an order of the batch's own choosing."""
        wanted = set(sequences)
        self._drop([row for row, sequence in enumerate(self.rows) if sequence not in wanted])
        if self.rows:  # admission counts with what the rows of now may come to, and nothing more may be held
            most = max(self._lengths.longest + 1, *(sequence.max_num_tokens for sequence in sequences))
            for cache in self.caches:
                cache.fit(len(sequences), most)
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
    """The batch of a model whose KV cache cannot be batched: one row, in single caches."""

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
        """Single caches count for themselves."""

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches if not cache.empty())
