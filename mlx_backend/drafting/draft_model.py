"""DraftModelDrafter: what a smaller model would generate next, requested from the runner once it is known to pay.

Tokens that the client predicts, and those that repeat many tokens of earlier text, are taken from there: this costs
nothing and is right more often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mlx_backend.drafting.drafter import Guess
from mlx_backend.drafting.ngram import NGramDrafter

_SURE = 2
"""Least confidence of earlier text that is taken instead of the draft model's tokens."""


class DraftModelDrafter:
    """Implements `drafter.Drafter`."""

    def __init__(self, prompt_ids: Sequence[int], prediction_ids: Sequence[int] = ()) -> None:
        self._earlier = NGramDrafter(prompt_ids, prediction_ids)

    def extend(self, token_ids: Sequence[int]) -> None:
        self._earlier.extend(token_ids)

    def guess(self, most: int) -> Guess:
        found = self._earlier.guess(most)
        is_sure = found.token_ids and (found.is_predicted or found.confidence >= _SURE)
        return found if is_sure else replace(found, num_promised=max(most, 0))
