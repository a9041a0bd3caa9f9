"""EngineLoop: the repeated work of the device thread. Starts a step, reads the last one, computes prefill chunks.

Owns the scheduler, the prefix cache and all that is in flight. Everything here belongs to the device thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import replace

from mlx_backend.api.errors import EngineDead, GrammarFailed, OutOfMemory, SequenceFailed, let_go_of_frames
from mlx_backend.api.interface import FinishReason, GenerationRequest, SchedulerConfig, TokenEvent, TokenLogprobs
from mlx_backend.core.sequence import SequenceGroup, Status, TokenSequence, tell_prompt
from mlx_backend.core.step import Chunk, MaskBits, Newest, PromptResult, RowTokens, SequenceId, StepPlan
from mlx_backend.drafting.speculation import Speculation
from mlx_backend.engine.counters import Counters
from mlx_backend.engine.draft_source import DraftSource
from mlx_backend.engine.grammar_masks import read_masks
from mlx_backend.engine.reservations import largest
from mlx_backend.engine.scheduler import Scheduler
from mlx_backend.engine.stream import EventStream, Outbox
from mlx_backend.engine.throughput import ThroughputEstimate
from mlx_backend.prefix_cache.cache import PrefixCache
from mlx_backend.prefix_cache.no_cache import NoPrefixCache
from mlx_backend.runners.base import Runner

logger = logging.getLogger("pippin.engine")

_MAX_FAILURES_IN_A_ROW = 3
"""Failed computations without a decode step between them after which the device counts as broken."""


class EngineLoop:
    """The device thread's loop. `max_rows`: sequences that the runner decodes together. Others read `counters`."""

    def __init__(
        self,
        config: SchedulerConfig,
        runner: Runner,
        counters: Counters,
        *,
        max_rows: int,
        prefixes: PrefixCache | NoPrefixCache,
        pads_chunks: bool = False,
        speculation: Speculation,
    ) -> None:
        self._config, self._runner, self._counters, self._prefixes = config, runner, counters, prefixes
        self._throughput = ThroughputEstimate(config.max_chunk_tokens if pads_chunks else None)
        self.scheduler = Scheduler(config, self._throughput, max_rows, runner.budget, prefixes)
        self._in_flight: StepPlan | None = None
        """The step that was started and is not collected yet."""
        self._ran_out: OutOfMemory | None = None
        """Set if memory ran out in this decode step, and every row is lost."""
        self._has_rows = False
        self._rows: tuple[SequenceId, ...] = ()
        """Sequences with rows, as last reported to the prefix cache."""
        self._collected_at: float | None = None
        self._failures_in_a_row = 0
        self._speculation = speculation
        self._draft_source = DraftSource(runner, speculation, config.max_stall_s)
        self._drafts: dict[SequenceId, tuple[int, ...]] = {}
        """Drafts of the step that is being started."""
        self._outbox = Outbox()
        self._streams: dict[SequenceId, EventStream] = {}
        """The stream of every sequence that has not ended."""
        self._grammar_failures: list[GrammarFailed] = []
        """Failures of grammars in the step that is being started."""

    @property
    def has_work(self) -> bool:
        """Return whether a step has work to do now."""
        is_computing = self._in_flight is not None or (self.scheduler.has_work and not self.scheduler.is_blocked)
        return is_computing or self._prefixes.has_news

    @property
    def waits_for_disk(self) -> bool:
        return self.scheduler.is_blocked

    @property
    def requests(self) -> list[GenerationRequest]:
        """Requests with a sequence that has not ended."""
        streams = {id(stream): stream for stream in self._streams.values()}.values()
        alive = (each for stream in streams for each in stream.sequences if each.status is not Status.ENDED)
        return list({id(sequence.request): sequence.request for sequence in alive}.values())

    def make_room(self, kept_bytes: int | None) -> None:
        """Preempt what no longer fits, and leave `kept_bytes` to the prefix cache (None: no bound).

        Called between two steps, when memory is needed for something else.
        """
        self._collected_at = None  # no decode step is timed across this
        self._change_rows(self.scheduler.row_ids)  # while the rows still have their present identity
        self._make_room()
        self._prefixes.fit(kept_bytes)

    def arrive(self, group: SequenceGroup, stream: EventStream) -> None:
        """Queue a prompt behind all others."""
        for sequence in group.sequences:
            self._streams[sequence.id] = stream
        self.scheduler.add(group)
        self._tell(group)

    def close_sequence(self, sequence: TokenSequence, how: str) -> None:
        """Close a sequence that is read no more: it is `finished` or `aborted`. Idempotent."""
        self._end(sequence, how)

    def rest(self) -> None:
        """Settle down when there is no work for now."""
        self._collected_at = None
        self._let_go_of_rows()
        self._observe()

    def end(self, error: EngineDead, arrived: Iterable[EventStream]) -> None:
        """Fail all streams after the last turn, including those of prompts that have only `arrived`."""
        for stream in {*self._streams.values(), *arrived}:
            self._outbox.put(stream, error)
        self._outbox.send()
        self._prefixes.close()

    def step(self) -> None:
        """Start the next step, then read the last one: the device computes while Python works.

        If drafts are likely to pay, the last step is read first: a draft continues from its tokens.
        """
        self._prefixes.poll()
        if self._in_flight is not None and (self._in_flight.drafts or self._speculation.wants(self._decoding)):
            self._drain()
        self._make_room()
        plan = self._with_drafts(self.scheduler.schedule())
        self._prefixes.fit(self.scheduler.kept_bytes)
        started = self._start(plan) if plan.changes else None
        was_idle = self._in_flight is None
        is_first = was_idle and not any(sequence.output_ids for sequence in self.scheduler.rows(plan.decodes))
        if is_first:
            self._collected_at = self._counters.stepped_at = None
        elif not was_idle and not self._collect(self._in_flight, is_overlapped=True):
            started = None  # it was built on lost rows
        if started is not None and (is_first or (plan.chunks and (was_idle or plan.new_rows))):
            # A first token does not wait until a second step is built, nor for a chunk; nor does any token wait for the
            # chunks of two steps.
            self._collect(started)
            started = None
        self._in_flight = started
        if self._ran_out is not None:
            self._recover(self._ran_out)
        self._outbox.send()
        self._let_go_of_rows()
        for chunk in plan.chunks:
            self._prefill(chunk)
        if not plan.chunks:
            self._prefill_draft_model()
        self._outbox.send()
        self._observe()

    @property
    def _beside_s(self) -> float:
        """Return the seconds of the decode step in progress; 0 if there is none."""
        return self._throughput.decode_s if self._in_flight is not None else 0.0

    @property
    def _decoding(self) -> list[TokenSequence]:
        return [sequence for sequence in self.scheduler.running if sequence.can_decode]

    def _prefill_draft_model(self) -> None:
        """Have the draft model prefill a part of a row, if that should pay."""
        if self._draft_source.is_wanted(self._decoding):
            if self._in_flight is not None and self._in_flight.drafts:
                self._drain()  # it would be read before the next one is planned anyway, and its time varies
            self._draft_source.prefill(self._decoding, self._beside_s)
            self._collected_at = None  # what follows does not measure a decode step

    def _drain(self) -> None:
        """Read the step in flight before the next one is planned."""
        self._collect(self._in_flight)
        self._in_flight = None
        if self._ran_out is not None:
            self._recover(self._ran_out)

    def _with_drafts(self, plan: StepPlan) -> StepPlan:
        """Return the plan with drafts, if no step is in flight and they are likely to pay."""
        if self._in_flight is not None:
            return plan
        drafts = self._speculation.drafts(self.scheduler.rows(plan.decodes), self._draft_source.ask)
        return replace(plan, drafts=drafts) if drafts else plan

    def _make_room(self) -> None:
        """Preempt what the scheduler chooses. What was computed is kept as far as there is room."""
        leaving, free_bytes = self.scheduler.overflow(self._counters.kv_bytes)
        if not leaving:
            return
        gone = {sequence.id for unit in leaving for sequence in unit}
        if self.scheduler.has_paused:
            logger.debug("%d sequences of class batch are paused", len(gone))
        else:
            logger.info("%d sequences are preempted: the next steps of all do not fit", len(gone))
        self._prefixes.fit(free_bytes)
        self._change_rows(tuple(row for row in self._rows if row not in gone))
        for unit in leaving:
            if unit[0].group.num_remaining_tokens > 0:
                self._prefixes.leave(unit[0].group)
        self.scheduler.preempt(leaving)

    def _change_rows(self, staying: tuple[SequenceId, ...]) -> None:
        """Report rows to the prefix cache before they leave: it keeps what they hold."""
        if staying != self._rows:
            self._prefixes.change_rows(tuple(self.scheduler.rows(staying)))
            self._rows = staying

    def _observe(self) -> None:
        leaving = self.scheduler.leaving()
        if leaving is not None:  # unneeded memory is not held until the next step
            self._start(leaving)
        self._counters.observe(self._runner, self.scheduler, self._prefixes)
        self._counters.speculation = self._speculation.stats

    def _let_go_of_rows(self) -> None:
        """Release rows now if no step will start soon; otherwise they leave with the next step."""
        if self._has_rows and self._in_flight is None and not self.scheduler.running:
            self._prefixes.change_rows(())
            self._rows = ()
            self._runner.idle()
            self._has_rows = False

    def _start(self, plan: StepPlan) -> StepPlan | None:
        """Start a step; return the plan if its rows are being computed."""
        self._change_rows(plan.decodes or self.scheduler.row_ids)
        self._has_rows = self._has_rows or bool(plan.decodes)
        self._drafts = {draft.id: draft.token_ids for draft in plan.drafts}
        try:
            self._runner.start(plan, self._read_masks)
        except OutOfMemory as error:
            self._ran_out = error  # the step before may still be intact: it is collected first
            return None
        except SequenceFailed as error:
            self._lose_rows()
            self._fail(error, self.scheduler.rows(error.ids or plan.decodes))
            return None
        if not plan.decodes:
            return None
        self.scheduler.started(plan)
        failures, self._grammar_failures = self._grammar_failures, []
        for failure in failures:
            self._fail(failure, self.scheduler.rows(failure.ids))
        return plan

    def _lose_rows(self) -> None:
        self._prefixes.lose_rows()
        self._rows = ()

    def _read_masks(self, newest: Newest) -> MaskBits:
        tokens = dict(newest)
        masked = self.scheduler.rows(tokens)
        pairs = ((sequence, tokens[sequence.id]) for sequence in masked)
        masks, self._grammar_failures = read_masks(pairs, self._drafts)
        return masks

    def _collect(self, plan: StepPlan | None, *, is_overlapped: bool = False) -> bool:
        """Return whether the oldest step's tokens could be read. If not, every row is lost.

        `is_overlapped`: the step after it has been started.
        """
        drafts = () if plan is None else plan.drafts
        try:
            result = self._runner.collect()
        except OutOfMemory as error:
            self._runner.idle()  # a step that was started since then is built on lost rows
            self._ran_out = error
            return False
        except SequenceFailed as error:
            self._runner.idle()
            self._lose_rows()
            self._fail(error, list(self.scheduler.running))
            return False
        now = time.monotonic()
        took_s = None if self._collected_at is None else now - self._collected_at
        if took_s is not None:
            self._throughput.observe_decode(took_s)
        if took_s is not None and not drafts:
            known = self.scheduler.rows(row.id for row in result.rows)
            self.scheduler.priorities.stepped(known, len(result.rows), took_s)
        self._speculation.measure(result.rows, drafts, took_s, is_overlapped=is_overlapped)
        self._collected_at = now
        self._counters.stepped(now, self._config.max_stall_s)
        self._failures_in_a_row = 0
        self._succeeded(now)
        lengths = {draft.id: len(draft.token_ids) for draft in drafts}
        for row in result.rows:
            self._take_tokens(row, lengths.get(row.id, 0))
        return True

    def _recover(self, error: OutOfMemory) -> None:
        """Fail the request that holds most, and compute the others again: their clients notice a pause."""
        self._ran_out = self._collected_at = None
        self._prefixes.clear()
        self._rows = ()
        running = list(self.scheduler.running)
        if running:
            self._fail(error, largest(running))
            self.scheduler.recompute()

    def _prefill(self, chunk: Chunk) -> None:
        group = self.scheduler.prompt(chunk.prompt)
        if group is None or not group.is_wanted:
            return
        if chunk.restore is not None and not self._prefixes.has_all(group, chunk):
            if self._prefixes.give_up(group):
                self.scheduler.start_again(group)
            return  # nothing was done, and nothing measured
        self._collected_at = None  # the time to the next collect is not a decode step's alone
        began = time.monotonic()
        try:
            result = self._runner.prefill(chunk)
        except SequenceFailed as error:
            self.scheduler.start_again(group)
            if chunk.restore is None:
                self._fail(error, group.sequences)
            else:
                self._prefixes.refuse(group, error)
            return
        now = time.monotonic()
        took_s = max(now - began - self._beside_s, 0.2 * (now - began))
        self._throughput.observe_chunk(chunk.start, chunk.num_tokens, took_s, is_known=chunk.restore is not None)
        self.scheduler.priorities.computed(group, chunk, took_s)
        self._take_prompt(group, chunk, result)
        self._succeeded(now)

    def _take_prompt(self, group: SequenceGroup, chunk: Chunk, result: PromptResult) -> None:
        group.logprobs += result.logprobs
        group.embedding = result.embedding
        self.scheduler.computed(chunk)
        (self._prefixes.computed if chunk.restore is None else self._prefixes.restored)(group, chunk)
        self._tell(group)

    def _tell(self, group: SequenceGroup) -> None:
        """Report a computed prompt to its stream; a request for no tokens ends here."""
        for sequence, event in tell_prompt(group):
            self._outbox.put(self._streams[sequence.id], event)
            if event.finish_reason is not None:
                self._end(sequence, "finished")

    def _succeeded(self, now: float) -> None:
        self._counters.num_steps += 1
        self._counters.progress_at = now

    def _take_tokens(self, row: RowTokens, num_drafted: int) -> None:
        """Take the tokens that a step gave a row: those after its end are discarded."""
        sequence = self.scheduler.sequence(row.id)
        if sequence is None:
            return
        sequence.num_started_tokens += len(row.token_ids) - 1
        sequence.drafted += self._speculation.count(row.id, len(row.token_ids) - 1, num_drafted)
        for place, token_id in enumerate(row.token_ids):
            if sequence.status is Status.ENDED:
                return
            self._take_token(sequence, token_id, row.logprobs[place] if row.logprobs else None)

    def _take_token(self, sequence: TokenSequence, token_id: int, logprobs: TokenLogprobs | None) -> None:
        sequence.output_ids.append(token_id)
        self.scheduler.priorities.num_output_tokens[sequence.request.priority] += 1
        request = sequence.request
        reason: FinishReason | None = None
        if token_id in request.stop_ids:
            reason = "stop"
        elif len(sequence.output_ids) >= request.max_tokens:
            reason = "length"
        event = TokenEvent(sequence.index, token_id, logprobs, reason)
        self._outbox.put(self._streams[sequence.id], event)
        if reason is not None:
            self._end(sequence, "finished")

    def _fail(self, error: SequenceFailed, sequences: Iterable[TokenSequence]) -> None:
        """Fail some sequences and their streams; raise after repeated failures."""
        logger.error("a computation failed: %s", error, exc_info=error.__cause__)
        let_go_of_frames(error)
        for sequence in sequences:
            if sequence.status is not Status.ENDED:
                self._outbox.put(self._streams[sequence.id], error)
                self._end(sequence, "failed")
        if isinstance(error, OutOfMemory | GrammarFailed):
            return  # the fault is in the request, not in the device
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= _MAX_FAILURES_IN_A_ROW:
            raise EngineDead(f"{self._failures_in_a_row} computations failed in a row; the last: {error}") from error

    def _end(self, sequence: TokenSequence, how: str) -> None:
        if sequence.status is Status.ENDED:
            return
        if how == "finished":
            self.scheduler.lengths.observe(sequence.request.max_tokens, len(sequence.output_ids))
        self._prefixes.keep_given_up(sequence)
        self._speculation.forget(sequence.id)
        self.scheduler.end(sequence)
        self._counters.ended(how, time.monotonic())
        del self._streams[sequence.id]
