"""The plan of the next step: rows that decode, chunks that are computed.

Arithmetic on counters: no MLX, no clock, no threads.

The rules:
- every running sequence decodes in every step;
- beside decodes, prefill gets as many tokens as should take what `max_stall_s` leaves, and never less than a share of
  the time: if a decode step is slow, streams pause for longer than that;
- if nothing decodes, a chunk may take `max_chunk_s`;
- a request waits until it fits into memory beside the others, all at their expected lengths; those behind it wait, too;
- if the next steps do not fit, the newest leave and wait at the front of the queue, to be computed again. The oldest
  request never leaves: alone it always fits;
- a chunk is no longer than what fits into memory at its place in the prompt;
- tenants take turns at admission;
- prompts take turns: the oldest goes first in one step, the one with the least left in the next. The
  oldest gets every other turn whatever arrives, and a short prompt does not wait for a long one;
- of different classes, the most urgent goes first (`priorities.py`), and class batch makes room for the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator

from mlx_backend.api.interface import SchedulerConfig
from mlx_backend.core.sequence import SequenceGroup, Status, TokenSequence, next_id
from mlx_backend.core.step import Chunk, NewRow, PromptId, SequenceId, StepPlan
from mlx_backend.engine.class_queue import ClassQueue
from mlx_backend.engine.expected_length import ExpectedLength
from mlx_backend.engine.grammar_masks import needs_mask
from mlx_backend.engine.priorities import Priorities, choose_displaced, is_batch, rank_to_leave
from mlx_backend.engine.reservations import Unit, alive_of, choose_leaving, reserve_expected, reserve_soon
from mlx_backend.engine.throughput import ThroughputEstimate
from mlx_backend.planning.admission import Budget, Reservation
from mlx_backend.prefix_cache.prefix_match import PrefixMatch, PrefixView
from mlx_backend.sampling.keys import base_key

_STALL_SHARE = 0.6
"""Share of the promised stall that a chunk is planned for; the rest absorbs what no measurement predicts."""
_LEFTOVER_SHARE = 0.15
"""Share of the time budget below which a leftover starts no further chunk."""
_SPARE_SHARE = 4
"""Divisor of the free memory: places of rows that left may take one such part."""
UNBOUNDED_BYTES = 1 << 62


class Scheduler:
    """Queues and rows. `max_rows` is 1 if the model's KV cache cannot be batched; `budget` None: no bound."""

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
        self._is_full = self.has_paused = False
        """Sequences have left since the last plan: the next one admits nothing, or nothing of class batch."""
        self.lengths = ExpectedLength()
        self.num_preemptions = 0
        """Sequences that were preempted."""
        self.num_recomputed_tokens = 0
        """Tokens that were computed again because they were lost."""
        self.kept_bytes: int | None = None
        """Bytes that the last plan leaves for the prefix cache; None: no bound."""
        self.is_blocked = False
        """Whether all work waits for the disk."""
        self.waiting = ClassQueue()
        self.prefilling: list[SequenceGroup] = []
        self.ready: deque[TokenSequence] = deque()
        self.running: list[TokenSequence] = []
        self._admitted: dict[PromptId, SequenceGroup] = {}
        """Prompts that were admitted and have a sequence that has not ended."""
        self.priorities = Priorities(config.batch_share, self._admitted, self.waiting)
        self._rows: dict[SequenceId, TokenSequence] = {}
        """Sequences that the runner has a row for and that have not ended."""
        self._ended: list[SequenceId] = []
        """Sequences that had a row and have ended since the last plan."""
        self._dropped: list[PromptId] = []
        """Prompts with a KV cache that has become useless since the last plan."""

    def _claims(self, groups: Iterable[SequenceGroup]) -> list[Reservation]:
        """Return what requests are expected to hold."""
        return [reserve_expected(group, self.lengths) for group in groups]

    @property
    def _soon(self) -> list[Reservation]:
        """Return what every admitted request holds within the next steps."""
        return [reserve_soon(group) for group in self._admitted.values()]

    @property
    def planned_bytes(self) -> int:
        """Return the bytes that admitted requests are expected to hold, at most the limit; 0 without a budget."""
        if self._budget is None:
            return 0
        return min(self._budget.needed(self._claims(self._admitted.values())), self._budget.limit_bytes)

    @property
    def stall_s(self) -> float:
        """Return the longest pause of running sequences that can be promised: above the setting if steps are slow."""
        throughput = self._throughput
        chunk_s = max(throughput.least_chunk_s, min(throughput.efficient_chunk_s, self._config.max_chunk_s))
        return max(self._config.max_stall_s, (throughput.decode_s + chunk_s) / _STALL_SHARE)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.prefilling or self.ready or self.running)

    def add(self, group: SequenceGroup) -> None:
        """Queue a prompt behind all others of its tenant."""
        self.waiting.append(group)

    def sequence(self, sequence_id: SequenceId) -> TokenSequence | None:
        """Return a sequence that the runner has a row for; None if it is to have none any more."""
        return self._rows.get(sequence_id)

    @property
    def row_ids(self) -> tuple[SequenceId, ...]:
        """Return the ids of the sequences that the runner has a row for and that have not ended."""
        return tuple(self._rows)

    def rows(self, sequence_ids: Iterable[SequenceId]) -> list[TokenSequence]:
        """Return those of the sequences that the runner has rows for."""
        return [self._rows[each] for each in sequence_ids if each in self._rows]

    def prompt(self, prompt_id: PromptId) -> SequenceGroup | None:
        """Return an admitted prompt; None if it is not needed any more."""
        return self._admitted.get(prompt_id)

    def schedule(self) -> StepPlan:
        """Admit what has a place, then plan one step. Chunks count as computed when `computed` reports them."""
        self._join()
        if not self._is_full:  # what leaves with this plan may come back with the next one, not with this one
            self._admit()
        self._is_full = self.has_paused = False
        self._num_steps += 1
        chunks = tuple(self._chunks(stalls=not all(is_batch(sequence.group) for sequence in self.running)))
        self.is_blocked = bool(self.prefilling) and not (chunks or self.running or self.ready)
        prompts = [self._admitted[chunk.prompt] for chunk in chunks]
        decodes = self.priorities.decoding(self.running, prompts, leaves=bool(self._ended))
        new_rows = tuple(self._new_row(sequence) for sequence in decodes if not sequence.has_row)
        self._dropped += [row.prompt for row in new_rows if not self._admitted[row.prompt].is_wanted]
        ended, dropped = self._take_leaving()
        spare_bytes, self.kept_bytes = self._divide_free(chunks)
        return StepPlan(
            ended=ended,
            new_rows=new_rows,
            decodes=tuple([sequence.id for sequence in decodes]),
            masked=tuple([s.id for s in decodes if s.request.grammar is not None and needs_mask(s)]),
            dropped=dropped,
            chunks=chunks,
            spare_bytes=spare_bytes,
        )

    def _divide_free(self, chunks: Iterable[Chunk]) -> tuple[int, int | None]:
        """Return the bytes for places of future rows, and those left for the prefix cache (None: no bound).

        They are free in this step and in the next few. What is kept for later requests gives way when room is needed.
        """
        if self._budget is None:
            return UNBOUNDED_BYTES, None
        soon, ends = self._soon, ((chunk.num_tokens, chunk.stop) for chunk in chunks)
        free = self._budget.limit_bytes - self._budget.needed_soon(soon, ends)
        spare = max(0, min(free // _SPARE_SHARE, self._budget.held(soon)))
        return spare, free - spare

    def leaving(self) -> StepPlan | None:
        """Return a plan without computation: what a runner may release since the last one. None: nothing."""
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
        """Note that the plan's rows are being computed: each is to get a token."""
        for sequence_id in plan.decodes:
            self._rows[sequence_id].num_started_tokens += 1

    def computed(self, chunk: Chunk) -> None:
        """Note that a chunk of the plan is done; the sequences of a complete prompt go on to decode."""
        group = self._admitted[chunk.prompt]
        group.num_computed_tokens = chunk.stop
        num_new = group.num_new_tokens(chunk)
        if chunk.restore is not None:
            group.num_cached_tokens += num_new
        else:
            self.num_recomputed_tokens += chunk.num_tokens - num_new
        if group.num_remaining_tokens == 0:
            self._complete(group)

    def start_again(self, group: SequenceGroup) -> None:
        """Start a prompt again, with nothing left of what was computed or restored."""
        group.num_computed_tokens = group.num_cached_tokens = 0
        self._dropped.append(group.id)

    def recompute(self) -> None:
        """Queue running sequences at the front again, as prompts of all their tokens: every row is lost."""
        while self.running:
            sequence = self.running[-1]
            self._rows.pop(sequence.id, None)
            self._wait_again([sequence])

    def overflow(self, held_bytes: int) -> tuple[list[Unit], int]:
        """Choose what is to be preempted so that the next steps fit; see `preempt`. Usually nothing.

        `held_bytes`: bytes of the KV caches now. Also returns the bytes available for keeping what leaves: they are
        free now, beside its rows, and stay free in the next steps without it.
        """
        groups, urgent = sorted(self._admitted.values(), key=rank_to_leave), self.waiting.first(takes_batch=False)
        leaving = self.priorities.choose_paused(self.running) or choose_displaced(groups, urgent, self._fits)
        self.has_paused = bool(leaving)
        if self._budget is None:
            return leaving, UNBOUNDED_BYTES
        leaving, staying = choose_leaving(groups, self._budget.admits, leaving)
        if not leaving:
            return [], 0
        soon = self._soon
        computing = self._budget.needed(soon) - self._budget.held(soon)
        free = self._budget.limit_bytes - max(held_bytes + computing, self._budget.needed(staying))
        return leaving, max(free, 0)

    def preempt(self, leaving: Iterable[Unit]) -> None:
        """Take out what `overflow` chose: it goes back to the front of the queue, as prompts of all their tokens."""
        for unit in leaving:
            self._is_full = not self.has_paused
            for sequence in unit:
                if self._rows.pop(sequence.id, None) is not None:
                    self._ended.append(sequence.id)
            group = self._wait_again(unit)
            if self.has_paused:
                self.priorities.num_pauses[group.request.priority] += len(unit)
            else:
                self.num_preemptions += len(unit)
                group.num_preemptions += 1

    def _wait_again(self, unit: Unit) -> SequenceGroup:
        """Put sequences of one request ahead of all that wait; nothing is left of what was computed of them."""
        former = unit[0].group
        output_ids = tuple(unit[0].output_ids) if unit[0].status is Status.RUNNING else former.output_ids
        for sequence in unit:
            if sequence in self.running:
                self.running.remove(sequence)
            if sequence in self.ready:
                self.ready.remove(sequence)
            sequence.status = Status.PENDING
            sequence.num_started_tokens = len(sequence.output_ids)
            sequence.close_grammar()  # it may have taken a token that is lost
            sequence.has_row = False
        if all(sequence in unit for sequence in alive_of(former)) and output_ids == former.output_ids:
            group = former  # its prompt is computed again: its stream keeps reporting the progress
            del self._admitted[group.id]
            if group.num_computed_tokens:
                self._dropped.append(group.id)
            if group in self.prefilling:
                self.prefilling.remove(group)
            group.lose()
        else:
            former.sequences = [sequence for sequence in former.sequences if sequence not in unit]
            self._forget(former)
            self._drop_unwanted(former)
            group = SequenceGroup(former.request, next_id(), output_ids, sequences=list(unit))
            group.num_preemptions = former.num_preemptions
            group.num_lost_tokens = group.num_tokens
            for sequence in unit:
                sequence.group = group
        self.waiting.appendleft(group)
        return group

    def end(self, sequence: TokenSequence) -> None:
        """Take out a sequence that finished, failed or was aborted, in whatever state it is. Idempotent."""
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
        if not self.ready or len(self.running) >= self._max_rows:
            return
        joining = self.priorities.joining(self.ready, self.running)
        for sequence in joining[: self._max_rows - len(self.running)]:
            self.ready.remove(sequence)
            sequence.status = Status.RUNNING
            self.running.append(sequence)

    def _admit(self) -> None:
        """Admit the most urgent first; within a class tenants take turns, and within one, first come, first served.

        Rows are promised before a prompt is computed, so that no prefilled prompt waits for one.
        """
        while self.waiting:
            group = self.waiting.first(takes_batch=not self.has_paused and self.priorities.takes_batch())
            if group is None or not self._fits(group, self._admitted.values()):
                return
            self.waiting.admit(group)
            self._admitted[group.id] = group
            group.admit()
            if group.num_remaining_tokens == 0:
                self._complete(group)
                self._join()
            else:
                self.prefilling.append(group)

    def _fits(self, group: SequenceGroup, beside: Collection[SequenceGroup]) -> bool:
        """Return whether a request has rows and memory beside others; alone it always has."""
        if beside and sum(len(alive_of(each)) for each in (*beside, group)) > self._max_rows:
            return False
        return not beside or self._budget is None or self._budget.admits(self._claims((*beside, group)))

    def _complete(self, group: SequenceGroup) -> None:
        if group in self.prefilling:
            self.prefilling.remove(group)
        self.ready.extend(s for s in group.sequences if s.status is Status.PENDING)

    def _chunks(self, *, stalls: bool) -> Iterator[Chunk]:
        throughput = self._throughput
        stall_s = max(self._config.max_stall_s * _STALL_SHARE - throughput.decode_s, throughput.least_chunk_s)
        budget_s = left_s = stall_s if stalls else max(self._config.max_chunk_s, throughput.least_chunk_s)
        planned: set[bytes] = set()
        for group in self.priorities.order(self.prefilling, self._num_steps):
            if is_batch(group):
                budget_s = left_s = min(left_s, self.priorities.chunk_s(stall_s, throughput.least_chunk_s))
            if left_s < budget_s * _LEFTOVER_SHARE:
                return
            match = PrefixMatch() if self._prefixes is None else self._prefixes.match(group)
            if match.starts_again:
                self.start_again(group)
            if match.waits or match.key in planned:
                continue
            if match.key is not None:
                planned.add(match.key)
            chunk = self._chunk(group, match, left_s, is_first=stalls and left_s == budget_s)
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
                budget_s = left_s = min(left_s, stall_s)  # from here on a request waits for a first token

    def _chunk(self, group: SequenceGroup, match: PrefixMatch, left_s: float, *, is_first: bool) -> Chunk:
        """Return a chunk of the prompt that should take `left_s`; the first beside decodes is at least efficient."""
        start, most = group.num_computed_tokens, self._config.max_chunk_tokens
        if match.restorable_until > start and self._prefixes is not None:
            stop = min(start + self._throughput.restorable_for(left_s, most), match.restorable_until)
            restore = self._prefixes.pieces(group, stop)
            if restore is not None:
                return group.chunk(start, stop, restore)
        fitting = self._throughput.tokens_for(start, left_s, most)
        if is_first:
            fitting = max(fitting, self._throughput.efficient_tokens(start, self._config.max_chunk_s, most))
        if self._budget is not None:
            fitting = self._budget.step_for(self._soon, start + fitting, fitting)
        stop = start + min(fitting, group.num_remaining_tokens)
        return group.chunk(start, min(stop, match.stop_at or stop))
