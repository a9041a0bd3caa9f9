"""Penalties for tokens that occurred: counts per row, kept on the device as tokens are sampled.

Presence and frequency penalties count the output, as OpenAI defines them; repetition counts prompt and output (Keskar
et al. 2019, arXiv 1909.05858). Only rows with penalties are held.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_backend.api.interface import SamplingParams
from mlx_backend.core.row import Row
from mlx_backend.sampling.continued import Continued

PenaltyState = tuple[mx.array, mx.array]


def has_penalty(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


class Penalties:
    """Counts [penalized rows, vocab] for some rows of a batch, rebuilt when the rows change."""

    def __init__(
        self, rows: Sequence[Row], vocab_size: int, previous: Penalties | Continued[PenaltyState] | None
    ) -> None:
        """Rows that `previous` holds keep their counts, which include tokens the host has not read yet."""
        self._places = {row: place for place, row in enumerate(row for row in rows if has_penalty(row.sampling))}
        self._batch_rows = mx.array([i for i, row in enumerate(rows) if row in self._places], dtype=mx.int32)
        params = [row.sampling for row in self._places]
        self._repetition = _column([p.repetition_penalty for p in params])
        self._presence = _column([p.presence_penalty for p in params])
        self._frequency = _column([p.frequency_penalty for p in params])
        counts = [
            previous.state_of(row) if previous is not None and previous.knows(row) else _count(row, vocab_size)
            for row in self._places
        ]
        self._num_output = mx.stack([output for output, _ in counts])
        self._in_prompt = mx.stack([in_prompt for _, in_prompt in counts])

    def knows(self, row: Row) -> bool:
        return row in self._places

    def state_of(self, row: Row) -> PenaltyState:
        """Return (output occurrences of each token: float32 [vocab], whether the prompt has it: bool [vocab])."""
        place = self._places[row]
        return self._num_output[place], self._in_prompt[place]

    def state_after(self, row: Row, token_ids: Sequence[int]) -> PenaltyState:
        """Return the state of a row after these further output tokens."""
        num_output, in_prompt = self.state_of(row)
        if token_ids:
            num_output = num_output.at[mx.array(token_ids)].add(1.0)
        return num_output, in_prompt

    def apply(self, logits: mx.array) -> mx.array:
        """Penalize logits, float32 [batch rows, vocab], in place."""
        chosen = logits[self._batch_rows]
        was_output = self._num_output > 0
        seen = was_output | self._in_prompt
        shrunk = mx.where(chosen > 0, chosen / self._repetition, chosen * self._repetition)
        chosen = mx.where(seen, shrunk, chosen)
        chosen = chosen - self._presence * was_output - self._frequency * self._num_output
        logits[self._batch_rows] = chosen
        return logits

    def count(self, tokens: mx.array) -> None:
        """Count the step's tokens, int [batch rows]."""
        places = mx.arange(len(self._places))
        self._num_output = self._num_output.at[places, tokens[self._batch_rows]].add(1.0)

    @property
    def state(self) -> mx.array:
        """Array to evaluate with the step, so that steps do not pile up in the graph."""
        return self._num_output


def _count(row: Row, vocab_size: int) -> tuple[mx.array, mx.array]:
    in_prompt = mx.zeros((vocab_size,), dtype=mx.bool_)
    in_prompt[mx.array(row.prompt_ids)] = True
    num_output = mx.zeros((vocab_size,), dtype=mx.float32)
    if row.output_ids:
        num_output = num_output.at[mx.array(row.output_ids)].add(1.0)
    return num_output, in_prompt


def _column(values: Sequence[float]) -> mx.array:
    return mx.array(values, dtype=mx.float32)[:, None]
