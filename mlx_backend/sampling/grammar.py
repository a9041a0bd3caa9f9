"""Rows that follow a grammar: which tokens of the vocabulary each may draw next. No MLX: the mock follows them, too.

A state's answer for the next token needs the last one on the host, so a step with such a row waits for the step before
it, after its own forward pass has been handed to the device. Rows without a grammar are not masked, and rows that are
free for some tokens yet are not looked at until then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mlx_backend.errors import GrammarFailed
from mlx_backend.sequence import Sequence as Row


@dataclass(frozen=True, slots=True)
class Masks:
    """What some rows may draw next."""

    bits: list[tuple[int, bytes]] = field(default_factory=list)
    """(place of the row, a bit for each token) of every row that is not free."""
    failures: list[GrammarFailed] = field(default_factory=list)
    """Of rows that cannot follow their grammar any further; each names its row."""


def needs_mask(row: Row) -> bool:
    """Whether the row's state has a say in the token that is drawn next."""
    if row.request.grammar is None:
        return False
    if row.grammar_state is None:
        row.grammar_state, row.num_accepted = row.request.grammar.start(), 0
    return row.num_started_tokens - row.num_accepted >= row.grammar_state.num_free_tokens


def read_masks(rows: Sequence[Row], newest: Sequence[int | None]) -> Masks:
    """The masks of all rows that are not free. All are asked for before the first is waited for.

    `newest`: each row's token that the device has and the sequence does not know of yet; None where there is none.
    """
    asked = []
    for place, (row, token_id) in enumerate(zip(rows, newest, strict=True)):
        if not needs_mask(row) or row.grammar_state is None:
            continue
        unseen = row.output_ids[row.num_accepted :]
        for each in unseen if token_id is None else (*unseen, token_id):
            row.grammar_state.accept(each)
            row.num_accepted += 1
        row.grammar_state.ask()
        asked.append((place, row, row.grammar_state))
    for _, _, state in asked:
        state.send()
    masks = Masks()
    for place, row, state in asked:
        try:
            bits = state.allowed()
        except GrammarFailed as error:
            masks.failures.append(type(error)(str(error), (row,)))
            continue
        if bits is not None:
            masks.bits.append((place, bits))
    return masks
