"""A scheduler and its clock, simulated: requests of several classes at the cost of a device that is made up."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mlx_backend.api.interface import GenerationRequest, Priority, SchedulerConfig
from mlx_backend.core.sequence import SequenceGroup, Status, TokenSequence, build_groups
from mlx_backend.core.step import Restore, SequenceId
from mlx_backend.engine.scheduler import Scheduler
from mlx_backend.engine.throughput import ThroughputEstimate
from mlx_backend.planning.admission import Budget
from mlx_backend.prefix_cache.prefix_match import PrefixMatch


@dataclass(frozen=True)
class Asked:
    """A request: when it comes, its class, and its tokens."""

    at: float
    priority: Priority
    num_prompt: int
    num_output: int


@dataclass
class Told:
    """What a client saw of its request, in simulated seconds."""

    asked: Asked
    admitted_at: float | None = None
    token_at: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        return self.token_at[0] - self.asked.at

    @property
    def itl_s(self) -> float:
        return (self.token_at[-1] - self.token_at[0]) / max(len(self.token_at) - 1, 1)


class Kept:
    """A prefix cache that keeps all that a preempted prompt had computed. Implements `PrefixView`."""

    def match(self, group: SequenceGroup) -> PrefixMatch:
        known = min(group.num_lost_tokens, group.num_tokens - 1)
        return PrefixMatch(restorable_until=known if known > group.num_computed_tokens else 0)

    def pieces(self, group: SequenceGroup, stop: int) -> Restore | None:
        return Restore((), with_state=False)


class Device:
    """The engine's loop over a scheduler: steps and chunks take simulated time, and the tokens come at their ends.

    `row_s`: what a row adds to a step of `step_s`. `keeps`: what a preempted sequence has computed is kept.
    """

    def __init__(
        self,
        asked: Iterable[Asked],
        *,
        step_s: float = 0.01,
        row_s: float = 0.001,
        token_s: float = 0.0002,
        max_rows: int = 8,
        budget: Budget | None = None,
        keeps: bool = True,
        config: SchedulerConfig | None = None,
    ) -> None:
        self.now = 0.0
        self._step_s, self._row_s, self._token_s = step_s, row_s, token_s
        self._pace = ThroughputEstimate()
        self.scheduler = Scheduler(config or SchedulerConfig(), self._pace, max_rows, budget, Kept() if keeps else None)
        self._coming = [(each.at, number, each) for number, each in enumerate(asked)]
        heapq.heapify(self._coming)
        self.told: dict[SequenceId, Told] = {}
        self.num_steps = 0
        self.is_idle_step = False

    @property
    def is_done(self) -> bool:
        return not self._coming and not self.scheduler.has_work

    def of(self, priority: Priority) -> list[Told]:
        """What the clients of a class saw."""
        return [told for told in self.told.values() if told.asked.priority == priority]

    def run(self, check: Callable[[], None] = lambda: None, until: float = float("inf")) -> None:
        """Go on until all is done, or to a moment."""
        while not self.is_done and self.now < until:
            self.step()
            check()

    def step(self) -> None:
        """One turn of the loop."""
        if not self.scheduler.has_work and self._coming:
            self.now = max(self.now, self._coming[0][0])
        while self._coming and self._coming[0][0] <= self.now:
            self._arrive(heapq.heappop(self._coming)[2])
        scheduler = self.scheduler
        leaving, _ = scheduler.overflow(0)
        scheduler.preempt(leaving)
        plan = scheduler.schedule()
        self.num_steps += 1
        began, rows = self.now, scheduler.rows(plan.decodes)
        scheduler.started(plan)
        if rows:
            took_s = self._step_s + self._row_s * len(rows)
            self.now += took_s
            self._pace.observe_decode(took_s)
            scheduler.priorities.stepped(rows, len(rows), took_s)
            for sequence in rows:
                self._deliver(sequence)
        for chunk in plan.chunks:
            group = scheduler.prompt(chunk.prompt)
            if group is None:
                continue
            took_s = (0.05 if chunk.restore else 1.0) * self._token_s * chunk.num_tokens + 0.001
            self.now += took_s
            self._pace.observe_chunk(chunk.start, chunk.num_tokens, took_s, is_known=chunk.restore is not None)
            scheduler.priorities.computed(group, chunk, took_s)
            scheduler.computed(chunk)
        assert self.now > began or leaving or plan.ended, "a step in which nothing is done"

    def _arrive(self, asked: Asked) -> None:
        request = GenerationRequest(
            request_id="x", prompt_ids=(1,) * asked.num_prompt, max_tokens=asked.num_output, priority=asked.priority
        )
        (group,) = build_groups([request])
        (sequence,) = group.sequences
        self.told[sequence.id] = Told(asked)
        self.scheduler.add(group)

    def _deliver(self, sequence: TokenSequence) -> None:
        assert sequence.status is Status.RUNNING
        told = self.told[sequence.id]
        sequence.output_ids.append(1)
        told.token_at.append(self.now)
        if len(sequence.output_ids) == told.asked.num_output:
            self.scheduler.lengths.observe(told.asked.num_output, told.asked.num_output)
            self.scheduler.end(sequence)
