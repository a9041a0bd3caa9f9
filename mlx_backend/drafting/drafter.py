"""Drafter: the source of one sequence's drafts; and the table of kinds.

To add a kind, write its module, with a class that implements `Drafter`, and add a row.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Guess:
    """Tokens that may follow. `confidence`: a class of guesses that are accepted alike, from 0 to NUM_CLASSES - 1."""

    token_ids: tuple[int, ...] = ()
    confidence: int = 0
    is_predicted: bool = False
    """Whether it is from the text that the client predicts."""
    num_promised: int = 0
    """Tokens that the runner's draft model would draft in place of these, on request."""


NUM_CLASSES = 4
PROMISED = NUM_CLASSES
"""Class of promised tokens: beyond those of guesses."""


class Drafter(Protocol):
    """Guesses what follows one sequence."""

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take tokens that the sequence has generated."""

    def guess(self, most: int) -> Guess:
        """Return up to `most` tokens that may follow, or none. Does not change what comes later."""


_KINDS = {
    "ngram": ("mlx_backend.drafting.ngram", "NGramDrafter"),
    "draft-model": ("mlx_backend.drafting.draft_model", "DraftModelDrafter"),
}
"""Module and class of each kind, by its name in the configuration."""


def build_drafter(kind: str, prompt_ids: Sequence[int], prediction_ids: Sequence[int]) -> Drafter:
    """Return a drafter for a sequence with this prompt. `prediction_ids`: tokens that its client expects, or none."""
    module, name = _KINDS[kind]
    drafter: Drafter = getattr(importlib.import_module(module), name)(prompt_ids, prediction_ids)
    return drafter
