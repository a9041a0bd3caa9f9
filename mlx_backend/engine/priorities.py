"""Limits of each class: the most urgent first, class batch with a share of the time. No MLX, no clock.

"Others" are requests of the classes live and normal. Without them, class batch has everything. Beside them:
- rows of class batch decode as far as a step takes no more than 1 + `share` of what it takes without them;
- what they and their prompts add to the others' time is paid from an account, which earns `share` of the time that the
  others take. If not even one row is that cheap, one decodes now and then, for as long as the account allows;
- rows that may not decode leave the batch: what they have computed is kept while memory allows, and they come back;
- a prompt of the others does not wait for steps of class batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from mlx_backend.api.interface import PRIORITIES
from mlx_backend.core.sequence import SequenceGroup, TokenSequence
from mlx_backend.core.step import Chunk, PromptId
from mlx_backend.engine.class_queue import ClassQueue, rank_of
from mlx_backend.engine.reservations import Unit, alive_of
from mlx_backend.engine.step_times import StepTimes

MOST_S = 0.5
"""Most seconds that the account holds: all of its savings may be spent beside one short answer."""
MOST_OWED_S = 2.0
"""Most seconds that the account owes, whatever was measured."""
OPEN_S = 0.25
"""Seconds in the account at which class batch begins to spend: enough for rows to come back for a useful time."""
DEBT_S = 0.25
"""Debt at which cheap rows have to leave, too; they come back when the account holds as much."""
LEAST_TOKENS = 32
"""Tokens that a sequence that comes back gets, even if the account owes them: otherwise it might never end."""
KEPT_FACTOR = 1.5
"""Factor on `share` for rows that already decode, so that a number near the limit is kept."""
PROMPT_SHARE = 0.2
"""Largest chunk of class batch, as a share of the time of the others' prompts: one may arrive meanwhile."""

STEP_SHARE = 0.1
"""Longest step of class batch alone, as a share of the time of the others' prompts."""
FORGETTING = 0.01
"""Growth of the expected prompts of others, as a share of the time without any."""
_BATCH = PRIORITIES.index("batch")


def is_batch(group: SequenceGroup) -> bool:
    """Return whether a request is of class batch."""
    return group.request.priority == "batch"


class Account:
    """Seconds that class batch may add to the time of others."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.left_s = 0.0
        self.is_open = False
        """Whether the account has reached `OPEN_S` and has not fallen to 0 since."""
        self.is_in_debt = False

    def earn(self, seconds: float) -> None:
        """Credit time for which others were served."""
        self._move(self.share * seconds)

    def spend(self, seconds: float) -> None:
        """Debit time that class batch added to the time of others."""
        self._move(-seconds)

    def _move(self, seconds: float) -> None:
        self.left_s = min(max(self.left_s + seconds, -MOST_OWED_S), MOST_S)
        self.is_open = self.left_s >= OPEN_S or (self.is_open and self.left_s > 0)
        self.is_in_debt = self.left_s <= -DEBT_S or (self.is_in_debt and self.left_s < DEBT_S)

    @property
    def is_full(self) -> bool:
        return self.left_s >= MOST_S


class Priorities:
    """Decisions by class, for the scheduler that owns it."""

    def __init__(self, share: float, admitted: Mapping[PromptId, SequenceGroup], waiting: ClassQueue) -> None:
        """Take `scheduler.batch_share` as `share`. `admitted`, `waiting`: the scheduler's own, only read here."""
        self._admitted, self._waiting = admitted, waiting
        self.times = StepTimes()
        self.account = Account(share)
        self.prompt_s: float | None = None
        """Seconds that recent prompts of others took; None if there was none."""
        self.num_pauses = dict.fromkeys(PRIORITIES, 0)
        self.num_output_tokens = dict.fromkeys(PRIORITIES, 0)

    # ---- decisions ----

    def num_rows(self, num_others: int, num_batch: int, num_now: int = 0) -> int:
        """Return how many of `num_batch` rows may decode beside `num_others`. `num_now`: rows that decode already."""
        if not num_others:
            return self._num_alone(num_batch)
        if self.account.is_in_debt:
            return 0
        factor = 1 + self.account.share
        cheap = self.times.most_rows(num_others, num_batch, factor)
        if cheap < num_now <= self.times.most_rows(num_others, num_batch, 1 + KEPT_FACTOR * self.account.share):
            cheap = num_now
        return cheap or min(num_batch, int(self.account.is_open))

    @property
    def _is_alone(self) -> bool:
        """Return whether all that is admitted is of class batch."""
        return all(map(is_batch, self._admitted.values()))

    def _num_alone(self, num_batch: int) -> int:
        """Return how many rows may decode alone: an arriving prompt of others waits for two of their steps."""
        if self.prompt_s is None:
            return num_batch
        return max(min(num_batch, 1), self.times.rows_within(num_batch, STEP_SHARE * self.prompt_s))

    def takes_batch(self) -> bool:
        """Return whether the next request may be one of class batch."""
        groups = self._admitted.values()
        num_others = sum(len(alive_of(group)) for group in groups if not is_batch(group))
        num_batch = sum(len(alive_of(group)) for group in groups if is_batch(group))
        if not num_others and not self._waiting.num_urgent:
            return not num_batch or num_batch < self._num_alone(num_batch + 1)
        return num_batch < self.num_rows(max(num_others, 1), num_batch + 1, num_batch) and self.account.left_s > 0

    def joining(self, ready: Iterable[TokenSequence], running: Sequence[TokenSequence]) -> list[TokenSequence]:
        """Return the ready sequences that may decode now, the most urgent first."""
        found = sorted(ready, key=lambda sequence: rank_of(sequence.group))
        others = [sequence for sequence in (*running, *found) if not is_batch(sequence.group)]
        num_now = sum(is_batch(sequence.group) for sequence in running)
        num_ready = sum(is_batch(sequence.group) for sequence in found)
        num_joining = self.num_rows(len(others), num_now + num_ready, num_now) - num_now
        return found[: len(found) - num_ready + max(num_joining, 0)]

    def order(self, prefilling: Sequence[SequenceGroup], num_steps: int) -> list[SequenceGroup]:
        """Return the prompts to compute chunks of, the most urgent class first.

        Within a class the oldest goes first in one step, the one with the least left in the next. Beside others, class
        batch needs time in its account, and waits for their prompts unless the account is full.
        """
        found: list[SequenceGroup] = []
        for rank in range(len(PRIORITIES)):
            of_class = [group for group in prefilling if rank_of(group) == rank]
            if of_class and num_steps % 2 == 0:
                shortest = min(of_class, key=lambda group: group.num_remaining_tokens)
                of_class = [shortest, *(group for group in of_class if group is not shortest)]
            has_time = self.account.is_full if found else self.account.is_open or self._is_alone
            if rank < _BATCH or has_time:
                found += of_class
        return found

    def chunk_s(self, stall_s: float, least_s: float) -> float:
        """Return the seconds that a chunk of class batch may take, at most `stall_s`, at least `least_s`."""
        return stall_s if self.prompt_s is None else min(stall_s, max(PROMPT_SHARE * self.prompt_s, least_s))

    def decoding(
        self, running: Iterable[TokenSequence], prompts: Iterable[SequenceGroup], *, leaves: bool
    ) -> list[TokenSequence]:
        """Return the sequences that decode beside chunks of `prompts`. `leaves`: rows leave with this step.

        Where only rows of class batch run, they stay as they are while prompts of others are computed.
        """
        decodes = [sequence for sequence in running if sequence.can_decode]
        is_waited_for = any(not is_batch(group) for group in prompts)
        if not is_waited_for or leaves or any(not is_batch(sequence.group) for sequence in decodes):
            return decodes
        if decodes and self.account.is_open:
            self.account.spend(self.times.estimate(len(decodes)) or 0.0)
            return decodes
        return []

    def choose_paused(self, running: Sequence[TokenSequence]) -> list[Unit]:
        """Return the sequences of class batch that leave, newest first: those that may not decode beside the others."""
        batch = [sequence for sequence in running if is_batch(sequence.group)]
        if not batch or len(batch) == len(running):
            return []
        kept = self.num_rows(len(running) - len(batch), len(batch), len(batch))
        oldest = batch[0]
        if not kept and oldest.group.output_ids and _num_new(oldest) < LEAST_TOKENS:
            kept = 1
        return [[sequence] for sequence in reversed(batch[kept:])]

    # ---- measurements ----

    def stepped(self, rows: Sequence[TokenSequence], num_rows: int, seconds: float) -> None:
        """Take the measured seconds of a decode step of `num_rows`, beside which nothing else was computed.

        `rows`: those that have not ended or left since it was started; the class of the rest is unknown.
        """
        if len(rows) < num_rows:
            return
        num_others = sum(not is_batch(sequence.group) for sequence in rows)
        self.times.observe(len(rows), seconds)
        self._pass_alone(seconds)
        alone_s = self.times.estimate(num_others) if num_others else None
        if alone_s is None:
            return
        self._earn(min(alone_s, seconds))
        if num_others < len(rows):
            self.account.spend(max(seconds - alone_s, 0.0))

    def computed(self, group: SequenceGroup, chunk: Chunk, seconds: float) -> None:
        """Take the measured seconds of a chunk."""
        self._pass_alone(seconds)
        if is_batch(group):
            self.account.spend(0.0 if self._is_alone else seconds)
            return
        self._earn(seconds / 4)  # most of what is earned is spent beside decodes, which bear the cost
        group.prompt_s += seconds
        if group.num_remaining_tokens <= chunk.num_tokens:
            self.prompt_s = group.prompt_s if self.prompt_s is None else 0.8 * self.prompt_s + 0.2 * group.prompt_s

    def _earn(self, seconds: float) -> None:
        """Earn for requests of class batch that are present; nothing is saved for later ones."""
        if self._waiting.of("batch") or any(map(is_batch, self._admitted.values())):
            self.account.earn(seconds)

    def _pass_alone(self, seconds: float) -> None:
        """Expect a longer next prompt of the others, the longer none has arrived."""
        if self.prompt_s is not None and self._is_alone:
            self.prompt_s += FORGETTING * seconds


def choose_displaced(
    groups: Sequence[SequenceGroup],
    urgent: SequenceGroup | None,
    fits: Callable[[SequenceGroup, Collection[SequenceGroup]], bool],
) -> list[Unit]:
    """Return the requests of class batch, the newest first, that leave to make a place for an `urgent` request.

    `groups`: admitted requests, in the order of `rank_to_leave`. Nothing leaves if that would not be enough.
    """
    staying, leaving = list(groups), list[Unit]()
    while urgent is not None and not fits(urgent, staying):
        if not staying or rank_to_leave(staying[-1]) < _BATCH:
            return []
        leaving.append(alive_of(staying.pop()))
    return leaving


def rank_to_leave(group: SequenceGroup) -> int:
    """Return the rank by which requests stay when memory is short: an aged one is among the most urgent."""
    return 0 if group.is_aged else rank_of(group)


def _num_new(sequence: TokenSequence) -> int:
    """Return the number of tokens that a sequence got since it came back."""
    return len(sequence.output_ids) - len(sequence.group.output_ids)
