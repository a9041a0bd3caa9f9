"""Decode steps of the MLX runner over one batch: built and handed to the device, and read a step later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_backend.core.row import Row
from mlx_backend.core.step import MaskBits, ReadMasks, RowTokens, StepPlan, StepResult
from mlx_backend.kv_cache.batch import RowBatch, SingleBatch
from mlx_backend.runners.drafts import DraftedStep, counts_of
from mlx_backend.runners.inputs import newest_tokens
from mlx_backend.sampling.sampler import BatchSampler, Drawn


@dataclass(frozen=True, slots=True)
class _InFlight:
    drawn: Drawn
    rows: list[Row]
    drafted: DraftedStep | None
    """The rows' drafts; None: there are none."""


class Decoding:
    """Decode steps; owns the batch, the sampler and the steps in flight. `choose`: sets the adapter of each row."""

    def __init__(
        self,
        model: Any,
        batch: RowBatch | SingleBatch,
        make_sampler: Callable[[], BatchSampler],
        vocab_size: int,
        choose: Callable[[Sequence[str]], None],
    ) -> None:
        self._model, self.batch, self._make_sampler, self._vocab_size = model, batch, make_sampler, vocab_size
        self._choose = choose
        self._sampler = make_sampler()
        self._last_tokens: mx.array | None = None
        """The newest token of each row of the batch; it may not be computed yet."""
        self.in_flight: deque[_InFlight] = deque()

    def start(self, rows: list[Row], plan: StepPlan, read_masks: ReadMasks, drop: Callable[[], None]) -> None:
        """Build a step of these rows and hand it to the device. `drop`: releases the plan's prompts.

        Raises what MLX raises; then no step was started, and the batch is lost.
        """
        previous, counts = self.batch.rows, counts_of(rows, plan.drafts)
        self.batch.spare_bytes = plan.spare_bytes
        if len(previous) != len(rows) or set(previous) != set(rows):
            self.batch.set_rows(rows, counts)
        else:
            self.batch.prepare(counts)
        if self.batch.rows != previous:
            self._sampler.set_rows(self.batch.rows, self._vocab_size)
            drop()  # before the forward pass needs the memory
        rows = list(self.batch.rows)
        inputs = newest_tokens(rows, previous, self._last_tokens)
        if counts:
            assert isinstance(self.batch, RowBatch), "a model whose caches cannot be batched takes no drafts"
            drafted = DraftedStep(rows, {each.id: each.token_ids for each in plan.drafts})
            self._choose([row.new.adapter for row in (rows if self.batch.is_wide else drafted.tokens)])
            logits = drafted.compute(self._model, self.batch, inputs)
            sampler = self._make_sampler()
            sampler.go_on_from(self._sampler, drafted.sources, self._vocab_size)
            first = drafted.first_tokens
            drawn = self._draw(sampler, logits, previous, first, plan, read_masks)
            self.in_flight.append(_InFlight(drawn, rows, drafted))
            return
        self._choose([row.new.adapter for row in rows])
        logits = self._model(inputs[:, None], cache=self.batch.caches)[:, -1]
        self.batch.advance()
        places = {row.id: place for place, row in enumerate(rows)}
        drawn = self._draw(self._sampler, logits, previous, places, plan, read_masks)
        self._last_tokens = drawn.tokens
        self.in_flight.append(_InFlight(drawn, rows, None))
        for row in rows:
            row.num_started_tokens += 1

    def _draw(
        self,
        sampler: BatchSampler,
        logits: mx.array,
        previous: Sequence[Row],
        places: dict[int, int],
        plan: StepPlan,
        read_masks: ReadMasks,
    ) -> Drawn:
        """Draw a token after each token; `places`: those of each row's first one, by its id."""
        bits = self._masks(logits, previous, places, plan, read_masks) if plan.masked else ()
        drawn = sampler.draw(logits, bits)
        mx.async_eval(drawn.arrays)
        return drawn

    def _masks(
        self,
        logits: mx.array,
        previous: Sequence[Row],
        places: dict[int, int],
        plan: StepPlan,
        read_masks: ReadMasks,
    ) -> list[tuple[int, bytes]]:
        """Return the bits of masked rows, by place. Waits for the last step while the device computes this one."""
        mx.async_eval(logits)
        tokens = [] if self._last_tokens is None else self._last_tokens.tolist()
        newest = {row.id: token for row, token in zip(previous, tokens, strict=bool(tokens))}
        bits: MaskBits = read_masks(tuple((each, newest.get(each)) for each in plan.masked))
        return [(places[each] + place, allowed) for each, place, allowed in bits]

    def collect(self) -> StepResult:
        """Wait for the oldest step, and read its tokens. Raises what MLX raises."""
        step = self.in_flight.popleft()
        mx.eval(step.drawn.arrays)  # the one wait of a step: the next is being computed meanwhile
        tokens = step.drawn.tokens.tolist()
        asked = step.drawn.logprobs
        if step.drafted is not None:
            return self._keep(step.drafted, step.drafted.read(tokens, asked))
        logprobs = {} if asked is None else asked.read(step.rows)
        return StepResult(
            tuple(
                RowTokens(row.id, (tokens[place],), (logprobs[place],) if place in logprobs else ())
                for place, row in enumerate(step.rows)
            )
        )

    def _keep(self, drafted: DraftedStep, taken: dict[Row, RowTokens]) -> StepResult:
        """Keep the tokens of a step with drafts that its rows took: their caches hold as many more."""
        assert isinstance(self.batch, RowBatch), "it has had drafts"
        drafted.keep(self._model, self.batch, {row: len(tokens.token_ids) for row, tokens in taken.items()})
        if self._sampler.has_state:
            before, self._sampler = self._sampler, self._make_sampler()
            sources = {row: (row, tokens.token_ids) for row, tokens in taken.items()}
            self._sampler.go_on_from(before, sources, self._vocab_size)
        for row, tokens in taken.items():
            row.num_started_tokens += len(tokens.token_ids)
        self._last_tokens = mx.array([tokens.token_ids[-1] for tokens in taken.values()], dtype=mx.uint32)
        return StepResult(tuple(taken.values()))
