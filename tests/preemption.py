"""Preemption for tests: a scheduler driven without a runner, and an engine that preempts at random."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from mlx_backend.api.interface import GenerationRequest, SchedulerConfig
from mlx_backend.core.sequence import SequenceGroup, Status, TokenSequence, build_groups
from mlx_backend.core.step import SequenceId, StepPlan
from mlx_backend.engine.reservations import Unit, alive_of, choose_leaving, reserve_soon
from mlx_backend.engine.scheduler import Scheduler
from mlx_backend.engine.throughput import ThroughputEstimate
from mlx_backend.planning.admission import Budget, Reservation

TOKENS_PER_STEP = 32


@dataclass
class Simulation:
    """Simulates the engine's loop around a scheduler: rows write their positions, several tokens per step.

    `lengths`: the output length at which each sequence ends by itself.
    """

    budget: Budget
    max_rows: int = 32
    scheduler: Scheduler = field(init=False)
    lengths: dict[SequenceId, int] = field(default_factory=dict)
    delivered: dict[SequenceId, list[int]] = field(default_factory=dict)
    rows: dict[SequenceId, int] = field(default_factory=dict)
    """State of a runner: each row's position in its output."""
    in_flight: dict[SequenceId, list[int]] = field(default_factory=dict)
    preempted: dict[SequenceId, int] = field(default_factory=dict)
    num_running: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        pace = ThroughputEstimate()
        for start in (0, 300, 600, 1200, 2400, 5000, 10_000):
            pace.observe_chunk(start, 100, 0.001)
        self.scheduler = Scheduler(SchedulerConfig(), pace, self.max_rows, self.budget)

    def arrive(self, num_prompt: int, max_tokens: int, lengths: list[int], tenant: str = "") -> SequenceGroup:
        """Queue a request with continuations that end at `lengths`."""
        asked = GenerationRequest(
            request_id="x", prompt_ids=(1,) * num_prompt, max_tokens=max_tokens, n=len(lengths), tenant=tenant
        )
        (group,) = build_groups([asked])
        for sequence, length in zip(group.sequences, lengths, strict=True):
            self.lengths[sequence.id] = min(length, max_tokens)
            self.delivered[sequence.id] = []
        self.scheduler.add(group)
        return group

    def end(self, sequence: TokenSequence) -> None:
        """End a sequence that finished, or after its client disconnected."""
        self.scheduler.end(sequence)

    def step(self, check: Callable[[StepPlan], None] = lambda plan: None) -> None:
        """Make room, plan, start, read the previous step, and compute chunks, in the order of the engine's loop."""
        scheduler = self.scheduler
        oldest = next(iter(scheduler._admitted.values()), None)
        held = self.budget.held(self.held_now())
        assert held <= self.budget.limit_bytes
        leaving, free_bytes = scheduler.overflow(held)
        assert free_bytes == 0 or held + free_bytes <= self.budget.limit_bytes
        for unit in leaving:
            for sequence in unit:
                assert sequence.group is not oldest, "the oldest leaves"
                self.preempted[sequence.id] = self.preempted.get(sequence.id, 0) + 1
        scheduler.preempt(leaving)
        plan = scheduler.schedule()
        soon = [reserve_soon(group) for group in scheduler._admitted.values()]
        chunks = [(chunk.num_tokens, chunk.stop) for chunk in plan.chunks]
        assert self.budget.needed_soon(soon, chunks) <= self.budget.limit_bytes
        assert scheduler.planned_bytes <= self.budget.limit_bytes
        check(plan)
        started = self._start(plan)
        self._read()
        self.in_flight = started
        self.num_running.append(len(plan.decodes))
        for chunk in plan.chunks:
            if scheduler.prompt(chunk.prompt) is not None:
                scheduler.computed(chunk)

    def run(self, condition: Callable[[], bool]) -> None:
        """Run steps until `condition` is true."""
        for _ in range(2000):
            if condition():
                return
            self.step()
        raise AssertionError("the awaited state did not come")

    def held_now(self) -> list[Reservation]:
        """Return the actual reservations: no row is longer than its sequence."""
        found = []
        for group in self.scheduler._admitted.values():
            alive = alive_of(group)
            longest = group.num_prompt_tokens + max(sequence.num_started_tokens for sequence in alive)
            found.append(Reservation(len(alive), group.num_tokens, longest, is_prefilled=not group.is_wanted))
        return found

    def _start(self, plan: StepPlan) -> dict[SequenceId, list[int]]:
        for sequence_id in plan.ended:
            del self.rows[sequence_id]
        for new in plan.new_rows:
            assert new.id not in self.rows
            self.rows[new.id] = len(new.output_ids)
        assert set(plan.decodes) <= set(self.rows)
        self.scheduler.started(plan)
        written = {}
        for sequence_id in plan.decodes:
            first = self.rows[sequence_id]
            self.rows[sequence_id] += TOKENS_PER_STEP
            written[sequence_id] = list(range(first, first + TOKENS_PER_STEP))
        return written

    def _read(self) -> None:
        for sequence_id, positions in self.in_flight.items():
            sequence = self.scheduler.sequence(sequence_id)
            if sequence is None:
                continue
            sequence.num_started_tokens += len(positions) - 1
            for position in positions:
                if sequence.status is Status.ENDED:
                    break
                sequence.output_ids.append(position)
                self.delivered[sequence_id].append(position)
                if len(sequence.output_ids) >= self.lengths[sequence_id]:
                    self.scheduler.lengths.observe(sequence.request.max_tokens, len(sequence.output_ids))
                    self.end(sequence)


def preempt_at_random(monkeypatch: pytest.MonkeyPatch, seed: int, one_in: int = 4) -> list[int]:
    """Preempt sequences in one of `one_in` steps, although there is room; return their number, as a counter.

    Their computed prefixes are kept or discarded at random.
    """
    source, counted = random.Random(seed), [0]

    def overflow(self: Scheduler, held_bytes: int) -> tuple[list[Unit], int]:
        if source.randrange(one_in):
            return [], 0
        too_many = iter([False] * source.randint(1, 3))
        leaving, _ = choose_leaving(list(self._admitted.values()), lambda claims: next(too_many, True))
        counted[0] += sum(map(len, leaving))
        return leaving, source.choice((0, 1 << 40))

    monkeypatch.setattr(Scheduler, "overflow", overflow)
    return counted
