"""DraftRows: what the draft model holds of each sequence, and the requests to it. Owned by the device thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mlx_backend.api.interface import MOST_DRAFT_TOKENS
from mlx_backend.core.sequence import TokenSequence
from mlx_backend.core.step import Draft, DraftRequest, SequenceId

_NEAR = MOST_DRAFT_TOKENS + 1
"""Tokens that a row may lack and still draft: they are prefilled with its newest one."""


class DraftRows:
    """Rows of the draft model. `context_limit`: its context in tokens; 0: there is none."""

    def __init__(self, context_limit: int) -> None:
        self._context_limit = context_limit
        self._held: dict[SequenceId, int] = {}

    def is_ready(self, sequence: TokenSequence, num_tokens: int, num_unknown: int) -> bool:
        """Return whether it can draft `num_tokens`, once `num_unknown` further ones of the sequence are known."""
        total = _length(sequence) + num_unknown
        return total + num_tokens <= self._context_limit and total - self._num_held(sequence) <= _NEAR

    def num_missing(self, sequence: TokenSequence) -> int:
        """Return how many tokens are to be prefilled before it can draft; 0 if it can now, or never will."""
        missing = _length(sequence) - 1 - self._num_held(sequence)
        return missing if missing >= _NEAR and _length(sequence) < self._context_limit else 0

    def to_prefill(self, sequence: TokenSequence, most: int) -> DraftRequest:
        """Return a request for the next of the missing tokens."""
        start = self._num_held(sequence)
        stop = min(start + most, _length(sequence) - 1)
        return DraftRequest(id=sequence.id, start=start, token_ids=_tokens(sequence, start, stop))

    def to_draft(self, sequence: TokenSequence, num_drafts: int) -> DraftRequest:
        """Return a request for drafts after the sequence's newest token."""
        start = self._num_held(sequence)
        token_ids = _tokens(sequence, start, _length(sequence))
        return DraftRequest(id=sequence.id, start=start, token_ids=token_ids, num_drafts=num_drafts)

    def answer(self, wanted: Iterable[DraftRequest], given: Sequence[Draft]) -> Mapping[SequenceId, tuple[int, ...]]:
        """Note what the draft model holds after these requests; return the drafts by row."""
        drafts = {draft.id: draft.token_ids for draft in given}
        for each in wanted:
            if each.id in drafts:
                self._held[each.id] = each.stop
            else:
                self._held.pop(each.id, None)
        return drafts

    def accept(self, sequence_id: SequenceId, num_accepted: int, num_drafted: int) -> None:
        """Note that `num_accepted` of a row's drafts were right: it holds those, but never the last one drafted."""
        if sequence_id in self._held:
            self._held[sequence_id] += min(num_accepted, num_drafted - 1)

    def forget(self, sequence_id: SequenceId) -> None:
        self._held.pop(sequence_id, None)

    def _num_held(self, sequence: TokenSequence) -> int:
        return self._held.get(sequence.id, 0)


def _length(sequence: TokenSequence) -> int:
    return sequence.group.num_prompt_tokens + len(sequence.output_ids)


def _tokens(sequence: TokenSequence, start: int, stop: int) -> tuple[int, ...]:
    prompt_ids = sequence.request.prompt_ids
    first = max(0, start - len(prompt_ids))
    return prompt_ids[start:stop] + tuple(sequence.output_ids[first : max(0, stop - len(prompt_ids))])
