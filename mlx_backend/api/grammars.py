"""Grammars as the engine sees them: which tokens a sequence may write next. They are compiled elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class GrammarState(Protocol):
    """Where one sequence stands in its grammar. Used by the device thread."""

    def accept(self, token_id: int) -> None:
        """The sequence has one token more."""

    def ask(self, draft_ids: Sequence[int] = ()) -> None:
        """Want what `allowed` returns. Of several sequences, all ask first; then it is computed for all together.

        `draft_ids`: tokens that may come next, for `allowed_behind`; none unless it `takes_drafts`.
        """

    def send(self) -> None:
        """Begin to compute what was asked for by now, of this sequence and of others with the same grammar."""

    def allowed(self) -> bytes | None:
        """A bit for each token, in little-endian words of 32: whether it may come next. None: all may.

        Raises GrammarFailed.
        """

    def allowed_behind(self) -> tuple[bytes, ...]:
        """What may come behind each token of the draft that was asked with, up to the first that is not allowed.

        Asked for after `allowed`. The sequence has none of these tokens yet.
        """

    @property
    def takes_drafts(self) -> bool:
        """Whether it can say what may come behind tokens that may come next."""

    def close(self) -> None:
        """The sequence has ended."""

    @property
    def num_free_tokens(self) -> int:
        """So many tokens more can come, whichever they are, before `allowed` may be anything but None."""


class Grammar(Protocol):
    """What a sequence must follow, compiled."""

    def start(self) -> GrammarState:
        """The state of a sequence without a token."""
