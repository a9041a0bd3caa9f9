"""Reasoning at the token level: whether a sequence is in it, and how it is closed once its budget is spent.

Works on token ids only; the grammar decides what may follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FOR_EVER = 1 << 62
_LEAD = 2
"""Tokens, such as white space, that may precede the reasoning."""


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Token ids that begin and end a model's reasoning; `is_open`: the prompt has begun it."""

    start_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    is_open: bool = False
    budget: int | None = None
    """Tokens after which it is closed by force; None: never."""
    closing_ids: tuple[int, ...] = ()
    """Tokens that close it then: `end_ids`, and what the model writes around them."""
    call_ids: tuple[int, ...] = ()
    """Tokens that begin a call, which may end unclosed reasoning; no budget cuts a call off. Empty: none."""


class ReasoningState:
    """State of one sequence: before its reasoning, within it, or behind it.

    `is_strict`: reasoning begins with the first token or never, as when a grammar follows it.
    """

    def __init__(self, reasoning: Reasoning, *, is_strict: bool) -> None:
        self._reasoning = reasoning
        self._place: Literal["before", "within", "behind"] = "within" if reasoning.is_open else "before"
        self._num_looks = 1 if is_strict else len(reasoning.start_ids) + _LEAD
        self._recent: tuple[int, ...] = ()
        self._budget = reasoning.budget
        self._num_tokens = 0
        self._forced: tuple[int, ...] = ()
        self._spend(0)

    def accept(self, token_id: int) -> bool:
        """Advance by one token; return whether it belongs to the reasoning."""
        self._forced = self._forced[1:]
        if self._place == "before":
            return self._look_for_start(token_id)
        if self._place == "behind":
            return False
        end_ids, call_ids = self._reasoning.end_ids, self._reasoning.call_ids
        self._recent = (*self._recent, token_id)[-max(len(end_ids), len(call_ids)) :]
        if self._recent[-len(end_ids) :] == end_ids:
            self._place = "behind"
        elif call_ids and self._recent[-len(call_ids) :] == call_ids:
            self._budget = None
        self._spend(1)
        return True

    @property
    def is_over(self) -> bool:
        """Whether reasoning has ended or can no longer begin, and no token is forced."""
        return self._place == "behind" and not self._forced

    @property
    def is_within(self) -> bool:
        return self._place == "within"

    @property
    def first_id(self) -> int | None:
        """Token with which reasoning may begin now; None if it may not begin, or if its start has several tokens."""
        start_ids = self._reasoning.start_ids
        return start_ids[0] if self._place == "before" and len(start_ids) == 1 else None

    @property
    def forced_id(self) -> int | None:
        """The only token that may come next; None if none is forced."""
        return self._forced[0] if self._forced else None

    def release(self) -> None:
        """Stop forcing tokens."""
        self._forced = ()

    @property
    def num_free_tokens(self) -> int:
        """Number of tokens, whatever they are, that can follow before one may be forced."""
        if self._forced:
            return 0
        if self._budget is None or self._place == "behind":
            return FOR_EVER
        return self._budget + 1 if self._place == "before" else self._budget - self._num_tokens

    def _look_for_start(self, token_id: int) -> bool:
        start_ids = self._reasoning.start_ids
        self._num_looks -= 1
        self._recent = (*self._recent, token_id)[-len(start_ids) :]
        if start_ids and self._recent == start_ids:
            self._place, self._recent = "within", ()
            self._spend(0)
            return True
        if self._num_looks == 0:
            self._place = "behind"
        return False

    def _spend(self, num_tokens: int) -> None:
        """Count tokens; once the budget is spent, force the closing tokens."""
        self._num_tokens += num_tokens
        if self.is_within and not self._forced and self._num_tokens == self._budget:
            self._forced = self._reasoning.closing_ids
