"""Speculation: the drafts of an engine's steps, and their outcome. Owned by the device thread.

To draft, a row's newest token must be known, so a step with drafts is started only when the previous one was read, and
the device waits that long. Whether that is likely to pay is judged one token early, with what is known while a step is
in flight; all of it is in the measured time of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from mlx_backend.api.interface import DraftedTokens, SpeculationConfig, SpeculationStats
from mlx_backend.core.sequence import TokenSequence
from mlx_backend.core.step import Draft, DraftRequest, RowTokens, SequenceId
from mlx_backend.drafting.draft_rows import DraftRows
from mlx_backend.drafting.drafter import PROMISED, Drafter, Guess, build_drafter
from mlx_backend.drafting.payoff import Account, Candidate, Payoff
from mlx_backend.kv_cache.allocation import DRAFT_CHUNK_TOKENS

_MOST_DRAFTED_STEPS = 256
"""Steps in a row with drafts after which the time of a plain one is measured again."""
_PLAIN_STEPS = 4
_CAPITAL_S = 5.0
"""Seconds that prefilling rows may cost before drafts have won anything."""

Ask = Callable[[tuple[DraftRequest, ...]], tuple[tuple[Draft, ...], float]]
"""Sends requests to the draft model: returns its drafts, and the seconds that they took."""


@dataclass(slots=True)
class _Row:
    """State of a sequence that decodes."""

    drafter: Drafter
    account: Account = field(default_factory=Account)
    num_seen: int = 0
    """Outputs that the drafter has taken."""
    guess: Guess = field(default_factory=Guess)
    """Guess from which the step's draft was taken."""


class Speculation:
    """Drafts of an engine. `max_drafts`: of a row in a step; 0: this model's caches take no drafts, and there are none.

    `draft_context`: the draft model's context in tokens; 0: there is none.
    """

    def __init__(self, config: SpeculationConfig, max_drafts: int, draft_context: int = 0) -> None:
        self._config, self._max_drafts = config, max_drafts
        self._payoff = Payoff(max_drafts, config.max_slowdown)
        self._rows: dict[SequenceId, _Row] = {}
        self._draft_rows = DraftRows(draft_context)
        self._drafting_s = 0.0
        """Seconds that the draft model took for the step that is being started."""
        self._decoded_s = 0.0
        """Seconds of all steps."""
        self._num_overlapped = 0
        """Steps in a row that were started before the previous one was read."""
        self._since_plain = 0
        self.stats = SpeculationStats()

    def wants(self, sequences: Sequence[TokenSequence]) -> bool:
        """Return whether drafts are likely to pay in the next step: the one in flight is then to be read first."""
        if not self._is_drafting(sequences):
            return False
        return any(self._payoff.choose(self._candidates(sequences, num_unknown=1), num_unknown=1))

    def drafts(self, sequences: Sequence[TokenSequence], ask: Ask) -> tuple[Draft, ...]:
        """Return the drafts of a step of these rows, with all tokens known; empty if none pays."""
        self._drafting_s = 0.0
        if not self._is_drafting(sequences):
            return ()
        chosen = self._payoff.choose(self._candidates(sequences, num_unknown=0))
        nums = {sequence: num for sequence, num in zip(sequences, chosen, strict=True) if num}
        found = {each.id: self._rows[each.id].guess.token_ids[:num] for each, num in nums.items()}
        asked = [s for s in nums if self._rows[s.id].guess.num_promised]
        if asked:
            found |= self._ask(tuple(self._draft_rows.to_draft(s, nums[s]) for s in asked), ask)
        return tuple(Draft(sequence_id, token_ids) for sequence_id, token_ids in found.items() if token_ids)

    def _ask(self, wanted: tuple[DraftRequest, ...], ask: Ask) -> dict[SequenceId, tuple[int, ...]]:
        given, self._drafting_s = ask(wanted)
        if given:
            self._payoff.costs.observe_steps(len(wanted), max(each.num_drafts for each in wanted), self._drafting_s)
        return dict(self._draft_rows.answer(wanted, given))

    def missing(self, sequences: Sequence[TokenSequence], stall_s: float) -> DraftRequest | None:
        """Return what the draft model is to prefill next of these rows, if that should pay; None: nothing.

        At most what should take `stall_s`. A row with a begun prefill comes first.
        """
        if not self._is_drafting(sequences):
            return None
        most = self._payoff.costs.tokens_for(stall_s, DRAFT_CHUNK_TOKENS)
        missing = [(self._draft_rows.num_missing(each), each) for each in sequences if each.output_ids]
        for num_missing, sequence in sorted(missing, key=lambda pair: pair[0]):
            if num_missing and self._is_worth(sequence, num_missing, len(sequences)):
                return self._draft_rows.to_prefill(sequence, most)
        return None

    def _is_worth(self, sequence: TokenSequence, num_missing: int, num_rows: int) -> bool:
        cost_s = self._payoff.costs.chunk_s(num_missing, self._payoff.plain_s(num_rows))
        if self.stats.won_s + self._config.max_slowdown * self._decoded_s + _CAPITAL_S < cost_s:
            return False
        return self._payoff.invests(self._row(sequence).account, cost_s, _room(sequence), num_rows)

    def prefilled(self, wanted: DraftRequest, given: Sequence[Draft], seconds: float) -> None:
        """Note that the draft model prefilled tokens of a row on request, in `seconds`."""
        self._draft_rows.answer([wanted], given)
        if given:
            self._payoff.costs.observe_chunk(len(wanted.token_ids), seconds)
        self.stats = replace(self.stats, won_s=self.stats.won_s - seconds)

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
            if guess.num_promised and self._draft_rows.is_ready(sequence, most, num_unknown):
                guess = Guess(confidence=PROMISED, num_promised=guess.num_promised)
            else:
                guess = replace(guess, num_promised=0)
            row.guess = guess
            num_guessed = guess.num_promised or len(guess.token_ids)
            num_tokens = max(0, min(num_guessed - num_unknown, most))
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

    def give_up_draft_model(self) -> None:
        """Send no more requests to the draft model."""
        self._draft_rows = DraftRows(0)

    # ---- outcome ----

    def measure(
        self, rows: Sequence[RowTokens], drafts: Sequence[Draft], seconds: float | None, *, is_overlapped: bool
    ) -> None:
        """Note the duration of a step: it is a plain one if the steps before and after it overlap, too.

        `is_overlapped`: the next step was started before it was read.
        """
        self._num_overlapped = self._num_overlapped + 1 if is_overlapped and seconds is not None else 0
        if seconds is not None:
            self.decoded(rows, seconds)
        if not is_overlapped:
            self.observe(rows, drafts, seconds)
        elif seconds is not None and self._num_overlapped > 1:
            self.observe_plain(len(rows), seconds)

    def observe_plain(self, num_rows: int, seconds: float) -> None:
        """Record the seconds of a step without drafts, besides the work between steps."""
        self._since_plain = 0
        self._payoff.observe_plain(num_rows, seconds)

    def observe(self, rows: Sequence[RowTokens], drafts: Iterable[Draft], seconds: float | None) -> None:
        """Take the tokens that rows got from a step that was started after the previous one was read.

        `seconds`: since the previous one was read; None: unknown.
        """
        lengths = {draft.id: len(draft.token_ids) for draft in drafts}
        self._since_plain += 1
        drafted, won_s = self.stats.drafted, self.stats.won_s
        for row in rows:
            known, num_drafted = self._rows.get(row.id), lengths.get(row.id, 0)
            if known is not None and num_drafted:
                num_accepted = len(row.token_ids) - 1
                if known.guess.num_promised:
                    self._draft_rows.accept(row.id, num_accepted, num_drafted)
                self._payoff.observe_draft(known.account, known.guess.confidence, num_accepted, num_drafted)
                drafted += _counted(known.guess, num_accepted, num_drafted)
            if known is not None and seconds is not None:
                won_s += self._payoff.settle(known.account, len(rows), len(row.token_ids), seconds) / len(rows)
        self.stats = SpeculationStats(num_steps=self.stats.num_steps + bool(lengths), drafted=drafted, won_s=won_s)
        if seconds is not None and lengths:
            verifying_s = max(seconds - self._drafting_s, 0.0)
            self._payoff.observe_drafted(len(rows), len(rows) + sum(lengths.values()), verifying_s)

    def decoded(self, rows: Iterable[RowTokens], seconds: float) -> None:
        """Record a step of any kind that took `seconds`."""
        self._decoded_s += seconds
        for row in rows:
            known = self._rows.get(row.id)
            if known is not None:
                known.account.decoded_s += seconds

    def count(self, sequence_id: SequenceId, num_accepted: int, num_drafted: int) -> DraftedTokens:
        """Return the counts of a row's newest draft, of which `num_accepted` tokens were taken."""
        known = self._rows.get(sequence_id)
        return DraftedTokens() if known is None or not num_drafted else _counted(known.guess, num_accepted, num_drafted)

    def forget(self, sequence_id: SequenceId) -> None:
        """Forget a sequence that has ended, or has lost its row."""
        self._rows.pop(sequence_id, None)
        self._draft_rows.forget(sequence_id)


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
