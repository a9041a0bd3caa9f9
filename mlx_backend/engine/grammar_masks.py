"""Sequences with a grammar: which tokens of the vocabulary each may draw next. Owned by the device thread. No MLX.

The mask of the next token needs the last token on the host, so a step with such a row waits for the step before it,
after its own forward pass has been handed to the device. Rows without a grammar are not masked. A row that is still
free for some tokens is not checked until then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from mlx_backend.api.errors import GrammarFailed
from mlx_backend.core.sequence import TokenSequence
from mlx_backend.core.step import MaskBits, SequenceId

_NO_DRAFTS: Mapping[SequenceId, Sequence[int]] = MappingProxyType({})


def needs_mask(sequence: TokenSequence) -> bool:
    """Return whether the sequence's grammar restricts the next token."""
    if sequence.request.grammar is None:
        return False
    if sequence.grammar_state is None:
        sequence.grammar_state, sequence.num_accepted = sequence.request.grammar.start(), 0
    return sequence.num_started_tokens - sequence.num_accepted >= sequence.grammar_state.num_free_tokens


def read_masks(
    newest: Iterable[tuple[TokenSequence, int | None]], drafts: Mapping[SequenceId, Sequence[int]] = _NO_DRAFTS
) -> tuple[MaskBits, list[GrammarFailed]]:
    """Return the masks of all sequences that are not free, and the failures of those that cannot continue.

    All masks are requested before waiting for the first. `newest`: sequences, and the token that the device drew for
    each and that its outputs do not have yet. `drafts`: tokens after which masks are needed, too.
    """
    asked = []
    for sequence, token_id in newest:
        state = sequence.grammar_state
        assert state is not None, "a masked sequence has begun its grammar"
        unseen = sequence.output_ids[sequence.num_accepted :]
        is_in_flight = sequence.num_started_tokens > len(sequence.output_ids)
        for each in (*unseen, token_id) if is_in_flight and token_id is not None else unseen:
            state.accept(each)
            sequence.num_accepted += 1
        state.ask(drafts.get(sequence.id, ()))
        asked.append((sequence, state))
    for _, state in asked:
        state.send()
    masks, failures = [], []
    for sequence, state in asked:
        try:
            bits = state.allowed()
        except GrammarFailed as error:
            failures.append(type(error)(str(error), (sequence.id,)))
            continue
        if bits is not None:
            masks.append((sequence.id, 0, bits))
            masks += [(sequence.id, 1 + place, behind) for place, behind in enumerate(state.allowed_behind())]
    return tuple(masks), failures
