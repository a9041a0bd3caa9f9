"""A decode step in which rows have drafts: to the model and the sampler, each of a row's tokens is a row.

The sampler draws a token behind each: with the parameters and the random key that it would have there without drafts.
A draft is kept as long as it is what was drawn, and behind the last one comes the token that was drawn there. So a row
gets the tokens that it would get without drafts, with a temperature, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx

from mlx_backend.core.row import Row
from mlx_backend.core.step import Draft, RowTokens, SequenceId
from mlx_backend.sampling.continued import Sources
from mlx_backend.sampling.logprobs import StepLogprobs


class DraftedRows:
    """The rows of a step, in the order of the batch, with their drafts."""

    def __init__(self, rows: Sequence[Row], drafts: Mapping[SequenceId, tuple[int, ...]]) -> None:
        self.rows = list(rows)
        self._drafts = [drafts.get(row.id, ()) for row in rows]
        self.sources: Sources = {
            Row(row.new, row.num_started_tokens + place): (row, draft[:place])
            for row, draft in zip(rows, self._drafts, strict=True)
            for place in range(len(draft) + 1)
        }
        """For each token: the row as it is behind it, and what it goes on from."""

    @property
    def tokens(self) -> list[Row]:
        """The row of each of the step's tokens."""
        return [row for row, _ in self.sources.values()]

    def first_token(self, row: Row) -> int:
        """Return the place of a row's newest token among the step's tokens."""
        return sum(len(draft) + 1 for draft in self._drafts[: self.rows.index(row)])

    def inputs(self, newest: mx.array) -> mx.array:
        """Return the step's tokens, [tokens], uint32; `newest`: those of the rows, [rows]."""
        drafted = mx.array([token for draft in self._drafts for token in draft], dtype=mx.uint32)
        places, next_draft = list[int](), len(self.rows)
        for row, draft in enumerate(self._drafts):
            places += [row, *range(next_draft, next_draft + len(draft))]
            next_draft += len(draft)
        return mx.concatenate([newest.astype(mx.uint32), drafted])[mx.array(places, dtype=mx.uint32)]

    def read(self, drawn: Sequence[int], logprobs: StepLogprobs | None) -> dict[Row, RowTokens]:
        """Return the tokens that each row gets. drawn: the token behind each of the step's tokens."""
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


def counts_of(rows: Sequence[Row], drafts: Sequence[Draft]) -> dict[Row, int]:
    """Return the tokens that a step gives each row; empty where none has a draft."""
    lengths = {draft.id: len(draft.token_ids) for draft in drafts}
    return {row: 1 + lengths.get(row.id, 0) for row in rows} if lengths else {}
