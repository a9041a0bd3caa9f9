"""Reservations of requests: what the budget counts for each, as expected and within the next steps. No MLX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from mlx_backend.core.sequence import SequenceGroup, Status, TokenSequence
from mlx_backend.engine.expected_length import ExpectedLength
from mlx_backend.kv_cache.allocation import SOON_TOKENS, tokens_soon
from mlx_backend.planning.admission import Reservation

_MOST_DOUBLINGS = 20

Unit = list[TokenSequence]
"""Sequences that leave together: one that decodes, or all that wait for the same prompt."""


def reserve_soon(group: SequenceGroup, staying: Iterable[TokenSequence] | None = None) -> Reservation:
    """Return what a request holds within its next steps. `staying`: the sequences of it that are counted."""
    alive = alive_of(group) if staying is None else list(staying)
    soon = tokens_soon(group.num_prompt_tokens, _written(alive), group.max_num_tokens)
    return _reservation(group, alive, soon)


def reserve_expected(group: SequenceGroup, lengths: ExpectedLength) -> Reservation:
    """Return what a request is expected to hold in the end: never less than what it holds soon.

    With every preemption its expected output counts twice as much, up to its worst case.
    """
    alive, most = alive_of(group), group.request.max_tokens
    written = _written(alive)
    factor = 1 << min(group.num_preemptions, _MOST_DOUBLINGS)
    expected = min(most, factor * lengths.expect(most, written - written % SOON_TOKENS))
    soon = tokens_soon(group.num_prompt_tokens, written, group.max_num_tokens)
    return _reservation(group, alive, max(soon, group.num_prompt_tokens + expected))


def alive_of(group: SequenceGroup) -> list[TokenSequence]:
    """Return the sequences of a request that have not ended."""
    return [sequence for sequence in group.sequences if sequence.status is not Status.ENDED]


def choose_leaving(
    groups: Sequence[SequenceGroup], fits: Callable[[list[Reservation]], bool], leaving: Iterable[Unit] = ()
) -> tuple[list[Unit], list[Reservation]]:
    """Return what leaves so that the next steps of the others fit, the newest first, and what the others reserve.

    `groups`: from the oldest to the newest. The oldest stays as it is: alone it always fits. `leaving`: what leaves in
    any case.
    """
    leaving = list(leaving)
    gone = {sequence for unit in leaving for sequence in unit}
    alive_now = ((group, [each for each in alive_of(group) if each not in gone]) for group in groups)
    staying = [(group, alive) for group, alive in alive_now if alive]
    claims = [reserve_soon(group, alive) for group, alive in staying]
    while len(claims) > 1 and not fits(claims):
        group, alive = staying.pop()
        claims.pop()
        unit = [sequence for sequence in alive if sequence.status is Status.PENDING] or alive[-1:]
        leaving.append(unit)
        rest = [sequence for sequence in alive if sequence not in unit]
        if rest:
            staying.append((group, rest))
            claims.append(reserve_soon(group, rest))
    return leaving, claims


def largest(sequences: Iterable[TokenSequence]) -> list[TokenSequence]:
    """Return the sequences of the request that holds most: after running out of memory, dropping it frees most."""
    by_request: dict[int, list[TokenSequence]] = {}
    for sequence in sequences:
        by_request.setdefault(id(sequence.request), []).append(sequence)
    held = {key: sum(s.num_computed_tokens for s in found) for key, found in by_request.items()}
    return by_request[max(held, key=lambda key: held[key])]


def _written(alive: Iterable[TokenSequence]) -> int:
    return max((sequence.num_started_tokens for sequence in alive), default=0)


def _reservation(group: SequenceGroup, alive: Sequence[TokenSequence], num_tokens: int) -> Reservation:
    is_prefilled = not any(sequence.status is Status.PENDING for sequence in alive)
    return Reservation(len(alive), group.num_tokens, num_tokens, is_prefilled=is_prefilled)
