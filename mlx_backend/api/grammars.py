"""Grammars as the engine sees them: the tokens that a sequence may have next. They are compiled elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class GrammarState(Protocol):
    """Position of one sequence in its grammar. Used by the device thread."""

    def accept(self, token_id: int) -> None:
        """Append a token to the sequence."""

    def ask(self, draft_ids: Sequence[int] = ()) -> None:
        """Request the result of `allowed`. All sequences ask first; then it is computed for all together.

        `draft_ids`: tokens that may come next, for `allowed_behind`; empty unless it `takes_drafts`.
        """

    def send(self) -> None:
        """Start computing all pending requests, of this sequence and of others with the same grammar."""

    def allowed(self) -> bytes | None:
        """Return one bit per token, in little-endian words of 32: whether it may come next. None: all may.

        Raises GrammarFailed.
        """

    def allowed_behind(self) -> tuple[bytes, ...]:
        """Return the tokens allowed after each token of the draft, up to the first that is not allowed.

        Called after `allowed`. The sequence has none of these tokens yet.
        """

    @property
    def takes_drafts(self) -> bool:
        """Whether it can compute the tokens allowed after a draft."""

    def close(self) -> None:
        """Release the state of an ended sequence."""

    @property
    def num_free_tokens(self) -> int:
        """Number of further tokens, of any kind, before `allowed` may return anything but None."""


class Grammar(Protocol):
    """A compiled grammar that sequences must follow."""

    def start(self) -> GrammarState:
        """Return the state of a sequence without tokens."""
