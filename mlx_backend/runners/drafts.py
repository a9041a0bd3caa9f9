"""A decode step in which rows have drafts: to the model and the sampler, each of a row's tokens is a row.

The sampler draws a token after each: with the parameters and the random key that it would have there without drafts. A
draft is accepted as long as it matches what was drawn, and after the last one comes the token that was drawn there. So
a row gets the tokens that it would get without drafts, with a temperature, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from mlx_backend.core.row import Row
from mlx_backend.core.step import Draft, RowTokens, SequenceId
from mlx_backend.kv_cache.batch import RowBatch
from mlx_backend.sampling.continued import Sources
from mlx_backend.sampling.logprobs import StepLogprobs


class DraftedStep:
    """Rows of a step, in the order of the batch, with their drafts."""

    def __init__(self, rows: Sequence[Row], drafts: Mapping[SequenceId, tuple[int, ...]]) -> None:
        self.rows = list(rows)
        self._drafts = [drafts.get(row.id, ()) for row in rows]
        self._counts = [len(draft) + 1 for draft in self._drafts]
        self._states: list[list[mx.array | None]] = []
        self.sources: Sources = {
            Row(row.new, row.num_started_tokens + place): (row, draft[:place])
            for row, draft in zip(rows, self._drafts, strict=True)
            for place in range(len(draft) + 1)
        }
        """For each token: the row as it is after it, and what it continues from."""

    @property
    def tokens(self) -> list[Row]:
        """Return the row of each of the step's tokens."""
        return [row for row, _ in self.sources.values()]

    @property
    def first_tokens(self) -> dict[SequenceId, int]:
        """Return the place of each row's newest token among the step's tokens."""
        ends = itertools.accumulate(self._counts, initial=0)
        return {row.id: first for row, first in zip(self.rows, ends, strict=False)}

    def compute(self, model: Any, batch: RowBatch, newest: mx.array) -> mx.array:
        """Return the logits after each of the step's tokens, [tokens, vocab]. `newest`: tokens of the rows, [rows]."""
        self._inputs = self._tokens_of(newest)
        if not batch.is_wide:
            logits: mx.array = model(self._inputs[:, None], cache=batch.caches)[:, -1]
            return logits
        self._states = batch.states()
        return _narrowed(model(_widened(self._inputs, self._counts), cache=batch.caches), self._counts)

    def keep(self, model: Any, batch: RowBatch, kept: Mapping[Row, int]) -> None:
        """Have the batch hold as many of each row's tokens as are `kept`.

        Columns of rejected tokens are overwritten. A state has absorbed them, so all rows go back to the state before
        the step, and it is computed again from the tokens that are kept.
        """
        counts = [kept[row] for row in self.rows]
        if batch.is_wide and counts != self._counts:
            batch.restore_states(self._states)
            batch.prepare(kept)
            model(_widened(self._inputs, self._counts, counts), cache=batch.caches)  # its logits are never computed
            mx.async_eval([array for held in batch.states() for array in held if array is not None])
        batch.advance(kept)

    def _tokens_of(self, newest: mx.array) -> mx.array:
        """Return the step's tokens, [tokens], uint32."""
        drafted = mx.array([token for draft in self._drafts for token in draft], dtype=mx.uint32)
        places, next_draft = list[int](), len(self.rows)
        for row, draft in enumerate(self._drafts):
            places += [row, *range(next_draft, next_draft + len(draft))]
            next_draft += len(draft)
        return mx.concatenate([newest.astype(mx.uint32), drafted])[mx.array(places, dtype=mx.uint32)]

    def read(self, drawn: Sequence[int], logprobs: StepLogprobs | None) -> dict[Row, RowTokens]:
        """Return the tokens that each row gets. drawn: the token after each of the step's tokens."""
        found = {} if logprobs is None else logprobs.read(list(self.sources))
        taken, first = dict[Row, RowTokens](), 0
        for row, draft in zip(self.rows, self._drafts, strict=True):
            own = drawn[first : first + len(draft) + 1]
            refused = (place for place, token in enumerate(draft) if token != own[place])
            num_taken = next(refused, len(draft)) + 1
            own_logprobs = tuple(found[first + place] for place in range(num_taken)) if first in found else ()
            taken[row] = RowTokens(row.id, tuple(own[:num_taken]), own_logprobs)
            first += len(draft) + 1
        return taken


def _widened(tokens: mx.array, counts: Sequence[int], kept: Sequence[int] | None = None) -> mx.array:
    """Return tokens, [tokens], row by row, as [rows, most tokens of a row]; each row is padded with its last token.

    `counts`: tokens of each row; `kept`: how many of them are returned, from the first; None: all.
    """
    kept, first, places = counts if kept is None else kept, 0, list[list[int]]()
    for count, num in zip(counts, kept, strict=True):
        places.append([first + min(place, num - 1) for place in range(max(kept))])
        first += count
    return tokens[mx.array(places, dtype=mx.uint32)]


def _narrowed(logits: mx.array, counts: Sequence[int]) -> mx.array:
    """Return logits [rows, most tokens of a row, vocab] as [tokens, vocab], padding left out."""
    num_rows, most, vocab = logits.shape
    flat = logits.reshape(num_rows * most, vocab)
    places = [row * most + place for row, count in enumerate(counts) for place in range(count)]
    return flat if len(places) == num_rows * most else flat[mx.array(places, dtype=mx.uint32)]


def counts_of(rows: Sequence[Row], drafts: Sequence[Draft]) -> dict[Row, int]:
    """Return the tokens that a step gives each row; empty if no row has a draft."""
    lengths = {draft.id: len(draft.token_ids) for draft in drafts}
    return {row: 1 + lengths.get(row.id, 0) for row in rows} if lengths else {}
