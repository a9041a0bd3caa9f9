"""Drafter: where the drafts of one sequence come from; and the table of kinds.

To add a kind, write its module, with a class that does what `Drafter` says, and add a row.
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
    """It is from the text that the client predicts."""
    num_promised: int = 0
    """Tokens that the runner's draft model would say in place of these, once it is asked."""


NUM_CLASSES = 4
PROMISED = NUM_CLASSES
"""The class of tokens that are promised: beyond those of guesses."""


class Drafter(Protocol):
    """Guesses what follows one sequence."""

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take tokens that the sequence has put out."""

    def guess(self, most: int) -> Guess:
        """Return up to `most` tokens that may follow, or none. Does not change what comes later."""


_KINDS = {
    "ngram": ("mlx_backend.drafting.ngram", "NGramDrafter"),
    "draft-model": ("mlx_backend.drafting.draft_model", "DraftModelDrafter"),
}
"""By the name in the configuration: the module, and the class in it."""


def build_drafter(kind: str, prompt_ids: Sequence[int], prediction_ids: Sequence[int]) -> Drafter:
    """Return a drafter for a sequence with this prompt. `prediction_ids`: what its client expects, or nothing."""
    module, name = _KINDS[kind]
    drafter: Drafter = getattr(importlib.import_module(module), name)(prompt_ids, prediction_ids)
    return drafter
