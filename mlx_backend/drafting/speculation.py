"""Speculation: the drafts of an engine's steps, and what became of them. Owned by the device thread.

To draft, a row's newest token must be known, so a step with drafts is started only when the one before it was read,
and the device waits for that long. Whether that is likely to pay is judged one token early, with what is known while
a step is in flight; all of it is in the measured time of the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mlx_backend.api.interface import DraftedTokens, SpeculationConfig, SpeculationStats
from mlx_backend.core.sequence import TokenSequence
from mlx_backend.core.step import Draft, RowTokens, SequenceId
from mlx_backend.drafting.drafter import Drafter, Guess, build_drafter
from mlx_backend.drafting.payoff import Account, Candidate, Payoff

_MOST_DRAFTED_STEPS = 256
"""After so many steps without a plain one, the time of a plain one is measured again."""
_PLAIN_STEPS = 4


@dataclass(slots=True)
class _Row:
    """What is remembered of a sequence that decodes."""

    drafter: Drafter
    account: Account = field(default_factory=Account)
    num_seen: int = 0
    """Outputs that the drafter knows."""
    guess: Guess = field(default_factory=Guess)
    """The one that the step's draft is of."""


class Speculation:
    """`max_drafts` of a row in a step; 0: this model's caches take no drafts, and there are none."""

    def __init__(self, config: SpeculationConfig, max_drafts: int) -> None:
        self._config, self._max_drafts = config, max_drafts
        self._payoff = Payoff(max_drafts, config.max_slowdown)
        self._rows: dict[SequenceId, _Row] = {}
        self._since_plain = 0
        self.stats = SpeculationStats()

    def wants(self, sequences: Sequence[TokenSequence]) -> bool:
        """Whether drafts are likely to pay in the next step: the one in flight is then to be read first."""
        if not self._is_drafting(sequences):
            return False
        return any(self._payoff.choose(self._candidates(sequences, num_unknown=1), num_unknown=1))

    def drafts(self, sequences: Sequence[TokenSequence]) -> tuple[Draft, ...]:
        """Return the drafts of a step of these rows, all of whose tokens are known. None where none pays."""
        if not self._is_drafting(sequences):
            return ()
        chosen = self._payoff.choose(self._candidates(sequences, num_unknown=0))
        return tuple(
            Draft(sequence.id, self._rows[sequence.id].guess.token_ids[:num])
            for sequence, num in zip(sequences, chosen, strict=True)
            if num
        )

    def _is_drafting(self, sequences: Sequence[TokenSequence]) -> bool:
        if not self._max_drafts or not sequences:
            return False
        if self._since_plain < _MOST_DRAFTED_STEPS:
            return True
        self._since_plain += 1
        if self._since_plain > _MOST_DRAFTED_STEPS + 2 * _PLAIN_STEPS:
            self._since_plain = 0
        return False

    def _candidates(self, sequences: Sequence[TokenSequence], num_unknown: int) -> list[Candidate]:
        found = []
        for sequence in sequences:
            row = self._row(sequence)
            most = min(self._max_drafts, _room(sequence) - num_unknown)
            guess = row.drafter.guess(most + num_unknown)
            row.guess = guess
            num_tokens = max(0, min(len(guess.token_ids) - num_unknown, most))
            found.append(Candidate(row.account, num_tokens, guess.confidence))
        return found

    def _row(self, sequence: TokenSequence) -> _Row:
        row = self._rows.get(sequence.id)
        if row is None:
            request = sequence.request
            drafter = build_drafter(self._config.kind, request.prompt_ids, request.prediction_ids)
            row = self._rows[sequence.id] = _Row(drafter)
        if row.num_seen < len(sequence.output_ids):
            row.drafter.extend(sequence.output_ids[row.num_seen :])
            row.num_seen = len(sequence.output_ids)
        return row

    # ---- what became of them ----

    def observe_plain(self, num_rows: int, seconds: float) -> None:
        """A step without drafts took `seconds`, beside what is done between steps."""
        self._since_plain = 0
        self._payoff.observe_plain(num_rows, seconds)

    def observe(self, rows: Sequence[RowTokens], drafts: Iterable[Draft], seconds: float | None) -> None:
        """A step that was started after the one before it was read gave its rows these tokens.

        `seconds`: from when the one before was read; None: not known.
        """
        lengths = {draft.id: len(draft.token_ids) for draft in drafts}
        self._since_plain += 1
        drafted, won_s = self.stats.drafted, self.stats.won_s
        for row in rows:
            known, num_drafted = self._rows.get(row.id), lengths.get(row.id, 0)
            if known is not None and num_drafted:
                num_accepted = len(row.token_ids) - 1
                self._payoff.observe_draft(known.account, known.guess.confidence, num_accepted, num_drafted)
                drafted += _counted(known.guess, num_accepted, num_drafted)
            if known is not None and seconds is not None:
                won_s += self._payoff.settle(known.account, len(rows), len(row.token_ids), seconds) / len(rows)
        self.stats = SpeculationStats(num_steps=self.stats.num_steps + bool(lengths), drafted=drafted, won_s=won_s)
        if seconds is not None and lengths:
            self._payoff.observe_drafted(len(rows), len(rows) + sum(lengths.values()), seconds)

    def decoded(self, rows: Iterable[RowTokens], seconds: float) -> None:
        """Rows had a step, of whatever kind, that took `seconds`."""
        for row in rows:
            known = self._rows.get(row.id)
            if known is not None:
                known.account.decoded_s += seconds

    def count(self, sequence_id: SequenceId, num_accepted: int, num_drafted: int) -> DraftedTokens:
        """Return what the newest draft of a row comes to, where so many of its tokens were taken."""
        known = self._rows.get(sequence_id)
        return DraftedTokens() if known is None or not num_drafted else _counted(known.guess, num_accepted, num_drafted)

    def forget(self, sequence_id: SequenceId) -> None:
        """A sequence has ended, or has lost its row."""
        self._rows.pop(sequence_id, None)


def _counted(guess: Guess, num_accepted: int, num_drafted: int) -> DraftedTokens:
    predicted = (num_drafted, num_accepted) if guess.is_predicted else (0, 0)
    return DraftedTokens(num_drafted, num_accepted, *predicted)


def _room(sequence: TokenSequence) -> int:
    """Return how many tokens a sequence can draft now."""
    request = sequence.request
    if not request.speculates:
        return 0
    room = request.max_tokens - len(sequence.output_ids) - 1
    if request.grammar is not None:
        state = sequence.grammar_state
        if state is not None and state.takes_drafts:
            return max(room, 0)
        num_free = 0 if state is None else state.num_free_tokens - (sequence.num_started_tokens - sequence.num_accepted)
        room = min(room, num_free - 1)
    return max(room, 0)
