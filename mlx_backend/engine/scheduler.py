"""The plan of the next step: rows that decode, chunks that are computed.

Arithmetic on counters: no MLX, no clock, no threads.

The rules:
- every running sequence decodes in every step;
- beside decodes, prefill gets as many tokens as should take what `max_stall_s` leaves, and never less than a share of
  the time: where a decode step is slow, streams pause for longer than that;
- where nothing decodes, a chunk may take `max_chunk_s`;
- who does not fit into memory beside those who run, by everybody's worst case, waits; whoever is behind waits too;
- a chunk is no longer than what fits into memory at its place in the prompt;
- tenants take turns at being let in;
- prompts take turns: the oldest goes first in one step, the one with the least left in the next. The
  oldest gets every other turn whatever arrives, and a short prompt does not wait for a long one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

from mlx_backend.api.interface import SchedulerConfig
from mlx_backend.core.sequence import SequenceGroup, Status, TokenSequence, next_id
from mlx_backend.core.step import Chunk, NewRow, PromptId, Restore, SequenceId, StepPlan
from mlx_backend.engine.grammar_masks import needs_mask
from mlx_backend.engine.throughput import ThroughputEstimate
from mlx_backend.engine.waiting import WaitingQueue
from mlx_backend.planning.admission import Budget, Reservation
from mlx_backend.prefix_cache.prefix_match import PrefixMatch
from mlx_backend.sampling.keys import base_key

_STALL_SHARE = 0.6
"""The share of the promised stall that a chunk is planned for; the rest is for what no measure foresees."""
_LEFTOVER_SHARE = 0.15
"""A leftover of the time budget smaller than this starts no further chunk."""
_SOON_TOKENS = 256
_SPARE_SHARE = 4
"""One part in so many of the free memory may be places of rows that left."""
UNBOUNDED_BYTES = 1 << 62


class PrefixView(Protocol):
    """The prefix cache, as far as the scheduler asks it."""

    def match(self, group: SequenceGroup) -> PrefixMatch:
        """Return what is known of the tokens that follow the computed part of a prompt."""

    def pieces(self, group: SequenceGroup, stop: int) -> Restore | None:
        """The blocks that restore a prompt from its computed part up to `stop`; None where some have gone."""


def reservation_of(group: SequenceGroup) -> Reservation:
    """Return the most that a request may come to hold from now on."""
    return _claim(group, group.max_num_tokens)


def reservation_soon(group: SequenceGroup) -> Reservation:
    """The same within the next turns: an output grows by a token in each. In steps, so that it seldom changes."""
    written = max((sequence.num_started_tokens for sequence in group.sequences), default=0)
    soon = group.num_prompt_tokens + (written // _SOON_TOKENS + 2) * _SOON_TOKENS
    return _claim(group, min(group.max_num_tokens, soon))


def _claim(group: SequenceGroup, num_tokens: int) -> Reservation:
    alive = sum(sequence.status is not Status.ENDED for sequence in group.sequences)
    return Reservation(alive, group.num_tokens, num_tokens, is_prefilled=not group.is_wanted)


def largest(sequences: Iterable[TokenSequence]) -> list[TokenSequence]:
    """Those of the request that holds most, of these: the one a batch that ran out of memory can best do without."""
    by_request: dict[int, list[TokenSequence]] = {}
    for sequence in sequences:
        by_request.setdefault(id(sequence.request), []).append(sequence)
    held = {key: sum(s.num_computed_tokens for s in found) for key, found in by_request.items()}
    return by_request[max(held, key=lambda key: held[key])]


class Scheduler:
    """Queues and rows. `max_rows` is 1 for a model whose KV cache cannot be batched; `budget` None: no bound."""

    def __init__(
        self,
        config: SchedulerConfig,
        throughput: ThroughputEstimate,
        max_rows: int,
        budget: Budget | None = None,
        prefixes: PrefixView | None = None,
    ) -> None:
        self._config = config
        self._throughput = throughput
        self._max_rows = max_rows
        self._budget = budget
        self._prefixes = prefixes
        self._num_steps = 0
        self.spare_bytes = 0
        """Bytes that rows may hold beyond what they take, by the last plan."""
        self.is_blocked = False
        """All that is to be done waits for the disk."""
        self.waiting = WaitingQueue()
        self.prefilling: list[SequenceGroup] = []
        self.ready: deque[TokenSequence] = deque()
        self.running: list[TokenSequence] = []
        self._admitted: dict[PromptId, SequenceGroup] = {}
        """Prompts that were let in and whose sequences have not all ended."""
        self._rows: dict[SequenceId, TokenSequence] = {}
        """Sequences that the runner has a row for and that have not ended."""
        self._ended: list[SequenceId] = []
        """Sequences that had a row and have ended since the last plan."""
        self._dropped: list[PromptId] = []
        """Prompts whose KV cache is of no use any more, since the last plan."""

    @property
    def claims(self) -> list[Reservation]:
        """The most that every admitted request may come to hold."""
        return [reservation_of(group) for group in self._admitted.values()]

    @property
    def planned_bytes(self) -> int:
        """Most bytes that those who were let in come to; 0 without a budget."""
        return self._budget.needed(self.claims) if self._budget is not None else 0

    def free_bytes(self, chunks: Iterable[Chunk] = ()) -> int | None:
        """Return the bytes that admitted requests leave free in this step, with these chunks, and in the next few.

        None: no budget. A request without `max_tokens` may come to the whole context, and seldom does: what is kept
        for later gives way when it is needed, and not before.
        """
        if self._budget is None:
            return None
        ends = ((chunk.num_tokens, chunk.stop) for chunk in chunks)
        soon = [reservation_soon(group) for group in self._admitted.values()]
        return self._budget.limit_bytes - self._budget.needed_soon(soon, ends)

    @property
    def stall_s(self) -> float:
        """The longest pause of running sequences that can be promised: more than was asked for where steps are slow."""
        throughput = self._throughput
        return max(self._config.max_stall_s, (throughput.decode_s + throughput.least_chunk_s) / _STALL_SHARE)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.prefilling or self.ready or self.running)

    def add(self, group: SequenceGroup) -> None:
        """Queue a prompt behind all others of its tenant."""
        self.waiting.append(group)

    def sequence(self, sequence_id: SequenceId) -> TokenSequence | None:
        """A sequence that the runner has a row for; None where it is to have none any more."""
        return self._rows.get(sequence_id)

    @property
    def row_ids(self) -> tuple[SequenceId, ...]:
        """Every sequence that the runner has a row for and that has not ended."""
        return tuple(self._rows)

    def rows(self, sequence_ids: Iterable[SequenceId]) -> list[TokenSequence]:
        """Those of the sequences that the runner has rows for."""
        return [self._rows[each] for each in sequence_ids if each in self._rows]

    def prompt(self, prompt_id: PromptId) -> SequenceGroup | None:
        """A prompt that was let in; None where nobody waits for it any more."""
        return self._admitted.get(prompt_id)

    def schedule(self) -> StepPlan:
        """Let in what has a place, then plan one step. Chunks count as computed when `computed` says so."""
        self._join()
        self._admit()
        self._num_steps += 1
        chunks = tuple(self._chunks(stalls=bool(self.running)))
        self.is_blocked = bool(self.prefilling) and not (chunks or self.running or self.ready)
        decodes = [sequence for sequence in self.running if sequence.can_decode]
        new_rows = tuple(self._new_row(sequence) for sequence in decodes if not sequence.has_row)
        self._dropped += [row.prompt for row in new_rows if not self._admitted[row.prompt].is_wanted]
        ended, dropped = self._take_leaving()
        self.spare_bytes = self._spare_bytes(chunks)
        return StepPlan(
            ended=ended,
            new_rows=new_rows,
            decodes=tuple([sequence.id for sequence in decodes]),
            masked=tuple([s.id for s in decodes if s.request.grammar is not None and needs_mask(s)]),
            dropped=dropped,
            chunks=chunks,
            spare_bytes=self.spare_bytes,
        )

    def _spare_bytes(self, chunks: Iterable[Chunk]) -> int:
        """Part of what is free, and of what rows hold: places of rows that left, for those that will come."""
        if self._budget is None:
            return UNBOUNDED_BYTES
        free = self.free_bytes(chunks)
        lengths = [s.num_computed_tokens + 1 for s in self.running]
        return max(0, min((free or 0) // _SPARE_SHARE, self._budget.batch_bytes(lengths)))

    def leaving(self) -> StepPlan | None:
        """A plan in which nothing is computed: what a runner need not hold since the last one. None: nothing."""
        if not self._ended and not self._dropped:
            return None
        ended, dropped = self._take_leaving()
        return StepPlan(ended=ended, dropped=dropped)

    def _take_leaving(self) -> tuple[tuple[SequenceId, ...], tuple[PromptId, ...]]:
        ended, dropped = tuple(self._ended), tuple(self._dropped)
        self._ended, self._dropped = [], []
        return ended, dropped

    def _new_row(self, sequence: TokenSequence) -> NewRow:
        if sequence.key is None:
            sequence.key = base_key(sequence.request.sampling.seed, sequence.ordinal)
        sequence.has_row = True
        self._rows[sequence.id] = sequence
        return sequence.row(sequence.key)

    def started(self, plan: StepPlan) -> None:
        """The plan's rows are being computed: each is to get a token."""
        for sequence_id in plan.decodes:
            self._rows[sequence_id].num_started_tokens += 1

    def computed(self, chunk: Chunk) -> None:
        """A chunk of the plan is done; a prompt that is complete hands its sequences over to decoding."""
        group = self._admitted[chunk.prompt]
        group.num_computed_tokens = chunk.stop
        if chunk.restore is not None and not group.output_ids:  # a prompt; not one that is computed again
            group.num_cached_tokens += chunk.num_tokens
        if group.num_remaining_tokens == 0:
            self._complete(group)

    def start_again(self, group: SequenceGroup) -> None:
        """Nothing is left of what was computed or restored of a prompt."""
        group.num_computed_tokens = group.num_cached_tokens = 0
        self._dropped.append(group.id)

    def recompute(self) -> None:
        """Every row is lost: who ran goes back to the front of the queue, as a prompt of all its tokens."""
        while self.running:
            sequence = self.running.pop()
            former = sequence.group
            former.sequences.remove(sequence)
            self._forget(former)
            self._drop_unwanted(former)
            sequence.status = Status.PENDING
            sequence.num_started_tokens = len(sequence.output_ids)
            sequence.close_grammar()  # may have been told of a token that is lost
            sequence.has_row = False
            self._rows.pop(sequence.id, None)
            sequence.group = SequenceGroup(former.request, next_id(), tuple(sequence.output_ids), sequences=[sequence])
            self.waiting.appendleft(sequence.group)

    def end(self, sequence: TokenSequence) -> None:
        """Take out a sequence that finished, failed or was aborted, wherever it stands. Idempotent."""
        if sequence.status is Status.ENDED:
            return
        sequence.status = Status.ENDED
        sequence.close_grammar()
        if self._rows.pop(sequence.id, None) is not None:
            self._ended.append(sequence.id)
        self._forget(sequence.group)
        if sequence in self.running:
            self.running.remove(sequence)
        if sequence in self.ready:
            self.ready.remove(sequence)
        self._drop_unwanted(sequence.group)

    def _forget(self, group: SequenceGroup) -> None:
        if all(s.status is Status.ENDED for s in group.sequences):
            self._admitted.pop(group.id, None)

    def _drop_unwanted(self, group: SequenceGroup) -> None:
        if group.is_wanted:
            return
        if group.num_computed_tokens:
            self._dropped.append(group.id)
        if group in self.waiting:
            self.waiting.remove(group)
        if group in self.prefilling:
            self.prefilling.remove(group)

    def _join(self) -> None:
        while self.ready and len(self.running) < self._max_rows:
            sequence = self.ready.popleft()
            sequence.status = Status.RUNNING
            self.running.append(sequence)

    def _admit(self) -> None:
        """Tenants take turns; within one, first come, first served.

        Rows are promised before a prompt is computed, so that none waits prefilled.
        """
        promised = len(self.running) + len(self.ready) + sum(len(p.sequences) for p in self.prefilling)
        while self.waiting:
            group = self.waiting.first
            num_rows = len(group.sequences)
            if promised and (promised + num_rows > self._max_rows or not self._has_room(group)):
                return
            self.waiting.popleft()
            self._admitted[group.id] = group
            group.admit()
            promised += num_rows
            if group.num_remaining_tokens == 0:
                self._complete(group)
                self._join()
            else:
                self.prefilling.append(group)

    def _has_room(self, group: SequenceGroup) -> bool:
        return self._budget is None or self._budget.admits([*self.claims, reservation_of(group)])

    def _complete(self, group: SequenceGroup) -> None:
        if group in self.prefilling:
            self.prefilling.remove(group)
        self.ready.extend(s for s in group.sequences if s.status is Status.PENDING)

    def _chunks(self, *, stalls: bool) -> Iterator[Chunk]:
        throughput = self._throughput
        stall_s = max(self._config.max_stall_s * _STALL_SHARE - throughput.decode_s, throughput.least_chunk_s)
        budget_s = left_s = stall_s if stalls else max(self._config.max_chunk_s, throughput.least_chunk_s)
        planned: set[bytes] = set()
        for group in self._order():
            if left_s < budget_s * _LEFTOVER_SHARE:
                return
            match = PrefixMatch() if self._prefixes is None else self._prefixes.match(group)
            if match.starts_again:
                self.start_again(group)
            if match.waits or match.key in planned:
                continue
            if match.key is not None:
                planned.add(match.key)
            chunk = self._chunk(group, match, left_s)
            yield chunk
            if chunk.restore is not None:
                token_s = throughput.restored_token_s
                took_s = None if token_s is None else token_s * chunk.num_tokens
            else:
                took_s = throughput.chunk_s(chunk.start, chunk.num_tokens)
            if took_s is None:
                return  # measure one chunk before planning a second
            left_s -= took_s
            if chunk.num_tokens == group.num_remaining_tokens:
                budget_s = left_s = min(left_s, stall_s)  # from here on somebody waits for a first token

    def _chunk(self, group: SequenceGroup, match: PrefixMatch, left_s: float) -> Chunk:
        """As much of a prompt as should take `left_s`."""
        start, most = group.num_computed_tokens, self._config.max_chunk_tokens
        if match.restorable_until > start and self._prefixes is not None:
            stop = min(start + self._throughput.restorable_for(left_s, most), match.restorable_until)
            restore = self._prefixes.pieces(group, stop)
            if restore is not None:
                return group.chunk(start, stop, restore)
        fitting = self._throughput.tokens_for(start, left_s, most)
        if self._budget is not None:
            fitting = self._budget.step_for(self.claims, start + fitting, fitting)
        stop = start + min(fitting, group.num_remaining_tokens)
        return group.chunk(start, min(stop, match.stop_at or stop))

    def _order(self) -> list[SequenceGroup]:
        if self._num_steps % 2 or len(self.prefilling) < 2:
            return list(self.prefilling)
        shortest = min(self.prefilling, key=lambda group: group.num_remaining_tokens)
        return [shortest, *(group for group in self.prefilling if group is not shortest)]
