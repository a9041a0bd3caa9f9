"""The mock runner: deterministic tokens, a pace, and faults, in place of a device.

It replaces the lowest edge only: the engine, the scheduler and everything above are the real ones. A token is a byte of
UTF-8 text, ids 0 to 255; the text depends on the prompt, on which of the n continuations it is and, unless the
temperature is 0, on the seed. With another model's tokenizer the tokens are that one's, and the text comes with the
request, as it does if a script supplies it. Nothing here is a model.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlx_backend.api.errors import ModelLoadError, OutOfMemory, SequenceFailed
from mlx_backend.api.interface import (
    NO_SPECULATION,
    DraftModelInfo,
    EngineConfig,
    Footprint,
    KVCacheReport,
    LoadProgress,
    MemoryReport,
    ModelInfo,
    TokenLogprobs,
)
from mlx_backend.core.row import Row
from mlx_backend.core.step import (
    Chunk,
    Draft,
    DraftRequest,
    MaskBits,
    PromptId,
    PromptResult,
    ReadMasks,
    RowTokens,
    SequenceId,
    StepPlan,
    StepResult,
)
from mlx_backend.kv_cache.plan import CachePlan, CacheShape, PartShape
from mlx_backend.planning import footprint
from mlx_backend.planning.admission import Budget
from mlx_backend.planning.memory import ModelShape
from mlx_backend.prefix_cache.store_mock import MockStore
from mlx_backend.runners.base import limited_by
from mlx_backend.runners.mock_adapters import MockAdapters
from mlx_backend.runners.mock_measures import EMBEDDING, SCORING, asked_logprobs, vector
from mlx_backend.runners.mock_text import choose, own_token
from mlx_backend.runners.mock_vocabulary import vocab_size_of

VOCAB_SIZE = 260
_LOAD_SLICES = 20
_WEIGHTS_BYTES = 1 << 20
_BYTES_PER_TOKEN = 16
_SHAPE = ModelShape(
    model_type="mock",
    num_parameters=0,
    weights_bytes=_WEIGHTS_BYTES,
    active_parameters=0,
    active_bytes=0,
    num_layers=1,
    hidden_size=1,
    widest=1,
    vocab_size=VOCAB_SIZE,
    context_length=1 << 20,
    itemsize=1,
    attention=None,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault at one decode step, counted from 1, or at every multiple of a number of steps.

    fail: the first sequence of that step is lost. oom: every row of the step is lost. hang: the step never ends. die:
    the device thread ends.
    """

    kind: str
    step: int
    is_repeated: bool = False

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Parse `KIND@STEP` or `KIND/STEPS`. Raises ModelLoadError."""
        found = re.fullmatch(r"(fail|oom|hang|die)([@/])([1-9][0-9]{0,8})", text)
        if found is None:
            raise ModelLoadError(
                "mock.fault must be fail, oom, hang or die, then @ and a step from 1, or / and every how many steps; "
                f"not {text!r}"
            )
        return cls(found[1], int(found[3]), is_repeated=found[2] == "/")

    def strikes(self, step: int) -> bool:
        return step % self.step == 0 if self.is_repeated else step == self.step


@dataclass(slots=True, eq=False)
class MockRow(Row):
    """A row, and the text written for it since it joined."""

    written: list[int] = field(default_factory=list)


class MockRunner:
    """Implements `runners.base.Runner` without a device."""

    def __init__(self, config: EngineConfig) -> None:
        """Build the mock. Raises ModelLoadError for an unusable tokenizer folder, and for an unknown fault."""
        self._config = config
        folder = config.mock.tokenizer
        self._vocab_size = VOCAB_SIZE if folder is None else vocab_size_of(Path(folder).expanduser())
        self._pace = config.mock
        self._fault = Fault.parse(self._pace.fault) if self._pace.fault else None
        self._interrupted = threading.Event()
        self._num_steps = 0
        self._free_at = 0.0
        self._rows: dict[SequenceId, MockRow] = {}
        self._prompts: dict[PromptId, list[int]] = {}
        """Computed tokens of each prompt."""
        self._in_flight: deque[tuple[float, StepResult]] = deque()
        """Due time and result of each step."""
        self.adapters = MockAdapters()
        self.blocks = MockStore(_BYTES_PER_TOKEN, self._tokens_of)

    budget: Budget | None = None

    def load(self, report: Callable[[LoadProgress], None]) -> ModelInfo:
        if self._config.kv_cache.is_quantized:
            raise ModelLoadError("kv_cache.bits: the mock holds no keys and values to quantize; leave it unset")
        for done in range(_LOAD_SLICES + 1):
            report(LoadProgress(done_bytes=_WEIGHTS_BYTES * done // _LOAD_SLICES, total_bytes=_WEIGHTS_BYTES))
            self._wait(self._pace.load_s / (_LOAD_SLICES + 1))
        limit = min(self._pace.context, self._config.context.limit or self._pace.context)
        memory = self._plan_memory()
        fitting = limit if self.budget is None else min(limit, self.budget.largest_alone(1))
        name = self._config.speculation.draft_model
        return ModelInfo(
            context_limit=fitting,
            context_limited_by=limited_by(self._config.context, limit, fitting),
            vocab_size=self._vocab_size,
            weights_bytes=_WEIGHTS_BYTES,
            memory=memory,
            kv_caches=(KVCacheReport(kind="mock", num_layers=1, bytes_per_token=_BYTES_PER_TOKEN),),
            max_drafts=self._config.speculation.max_drafts,
            no_drafts_reason="" if self._config.speculation.max_drafts else NO_SPECULATION,
            draft_model=None if name is None else DraftModelInfo(name=name, context_limit=self._pace.context),
            embedding=EMBEDDING,
            scoring=SCORING,
            adapters=self.adapters.load(self._config.adapters),
        )

    def _plan_memory(self) -> MemoryReport | None:
        """Return a budget if a limit is configured: the mock's tokens are then counted as if they were held."""
        given, share = self._config.memory, self._config.share
        limit = given.limit_bytes if share is None else share.share_bytes
        if limit is None:
            return None
        report = MemoryReport(
            limit_bytes=limit,
            limit_basis="memory.limit_gb" if share is None else "its share beside the other models",
            weights_bytes=_WEIGHTS_BYTES,
            reserve_bytes=given.reserve_bytes or 0,
        )
        self.budget = _budget(report.free_bytes)
        return report

    def prefill(self, chunk: Chunk) -> PromptResult:
        self.adapters.check([chunk.adapter])
        held = self._prompts.setdefault(chunk.prompt, [])
        assert len(held) == chunk.start, "chunks follow one another"
        held += chunk.token_ids
        if chunk.restore is not None:
            self.blocks.restore(chunk)
            return PromptResult()
        self._compute(chunk)
        is_last = chunk.stop == chunk.num_prompt_tokens
        made = vector(tuple(held)) if chunk.embeds and is_last else None
        return PromptResult(_prompt_logprobs(chunk), made)

    def _tokens_of(self, source: PromptId | SequenceId) -> Sequence[int]:
        """Return the computed tokens of a prompt, or of a row with its prompt."""
        if source in self._prompts:
            return self._prompts[source]
        row = self._rows[source]
        return (*row.prompt_ids, *row.output_ids, *row.written)

    def _compute(self, chunk: Chunk) -> None:
        """Take the time of a chunk."""
        share = chunk.num_tokens / max(chunk.num_prompt_tokens - 1, 1)
        self._wait(self._pace.ttft_s * share)

    def _step_s(self, rows: Sequence[MockRow], num_drafts: int = 0) -> float:
        """Return the seconds of a decode step of these rows; `num_drafts`: tokens of all rows that it also verifies."""
        return self._pace.itl_s

    def _now(self) -> float:
        return time.monotonic()

    def _wait(self, seconds: float) -> None:
        """Wait for `seconds`, or until the engine closes."""
        self._interrupted.wait(seconds)

    def start(self, plan: StepPlan, read_masks: ReadMasks) -> None:
        for sequence_id in plan.ended:
            self._rows.pop(sequence_id, None)
        for new in plan.new_rows:
            self._rows[new.id] = MockRow(new, len(new.output_ids))
        for prompt in plan.dropped:
            self._prompts.pop(prompt, None)
        if plan.decodes:
            self._start([self._rows[each] for each in plan.decodes], plan, read_masks)

    def _start(self, rows: list[MockRow], plan: StepPlan, read_masks: ReadMasks) -> None:
        self._num_steps += 1
        self.adapters.check(row.new.adapter for row in rows)
        if self._fault is not None and self._fault.strikes(self._num_steps):
            self._fail(self._fault, rows)
        masks: MaskBits = ()
        if plan.masked:
            newest = ((each, self._rows[each].written[-1:]) for each in plan.masked)
            masks = read_masks(tuple((each, written[0] if written else None) for each, written in newest))
        bits = {(each, place): allowed for each, place, allowed in masks}
        drafts = {draft.id: draft.token_ids for draft in plan.drafts}
        sampled = tuple(self._write(row, drafts.get(row.id, ()), bits) for row in rows)
        # one step after the other, as a device computes them, though the next is handed over early
        self._free_at = max(self._free_at, self._now()) + self._step_s(rows, sum(map(len, drafts.values())))
        self._in_flight.append((self._free_at, StepResult(sampled)))

    def _write(self, row: MockRow, draft: tuple[int, ...], bits: Mapping[tuple[SequenceId, int], bytes]) -> RowTokens:
        """Write a token, and one more for each draft token that matches what it writes."""
        written = list[RowTokens]()
        for place in range(len(draft) + 1):
            written.append(_sample(row, bits.get((row.id, place)), self._vocab_size))
            row.written += written[-1].token_ids
            row.num_started_tokens += 1
            if (row.written[-1],) != draft[place : place + 1]:
                break
        token_ids = tuple(token for tokens in written for token in tokens.token_ids)
        return RowTokens(row.id, token_ids, tuple(each for tokens in written for each in tokens.logprobs))

    def collect(self) -> StepResult:
        due, result = self._in_flight.popleft()
        self._wait(max(due - self._now(), 0.0))
        return result

    def draft(self, wanted: tuple[DraftRequest, ...]) -> tuple[Draft, ...]:
        """Return the text to be written, as if a smaller model wrote it; other tokens as `mock.draft_share` sets."""
        return tuple(Draft(each.id, self._guess(each)) for each in wanted if each.id in self._rows)

    def _guess(self, wanted: DraftRequest) -> tuple[int, ...]:
        row = self._rows[wanted.id]
        first = wanted.stop - len(row.prompt_ids)
        found = list[int]()
        for place in range(first, first + wanted.num_drafts):
            is_right = random.Random(f"{row.new.key} {place}").random() < self._pace.draft_share
            found.append((own_token(row, place) + (not is_right)) % self._vocab_size)
        return tuple(found)

    def idle(self) -> None:
        self._rows = {}
        self._in_flight.clear()

    def kv_bytes(self) -> int:
        num_tokens = sum(row.num_computed_tokens for row in self._rows.values()) + sum(map(len, self._prompts.values()))
        return num_tokens * _BYTES_PER_TOKEN

    def device_bytes(self) -> tuple[int, int]:
        return _WEIGHTS_BYTES, _WEIGHTS_BYTES

    def interrupt(self) -> None:
        self._interrupted.set()

    def close(self) -> None:
        self._rows = {}

    def _fail(self, fault: Fault, rows: Sequence[MockRow]) -> None:
        if fault.kind == "fail":
            raise SequenceFailed("the mock was told to fail this sequence", (rows[0].id,))
        if fault.kind == "oom":
            self._rows = {}
            raise OutOfMemory("the mock was told to run out of memory")
        if fault.kind == "die":
            raise RuntimeError("the mock was told to kill the device thread")
        self._interrupted.wait()


def estimate_footprint(config: EngineConfig) -> Footprint:
    """Estimate the footprint of a mock; without `memory.limit_gb` nothing bounds it."""
    memory = replace(config.memory, reserve_gb=config.memory.reserve_gb or 0.0)
    context = config.context.limit or config.mock.context
    return footprint.estimate_footprint(_budget(0), context, memory, config.memory.limit_bytes)


def _budget(limit_bytes: int) -> Budget:
    part = PartShape(num_heads=1, dim=_BYTES_PER_TOKEN // 2, itemsize=1)
    return Budget(_SHAPE, [CachePlan(CacheShape("plain", part, part))], limit_bytes)


def _sample(row: Row, bits: bytes | None, vocab_size: int) -> RowTokens:
    """Sample a token. `bits`: the tokens that a grammar allows."""
    token_id = own_token(row, row.num_started_tokens)
    if row.is_short and token_id in row.stop_ids:
        token_id = next(other for other in range(min(97, vocab_size - 1), vocab_size) if other not in row.stop_ids)
    if bits is not None:
        token_id = choose(bits, token_id, row, vocab_size)
    logprobs = _logprobs(token_id, row.sampling.num_logprobs)
    if logprobs is not None and row.sampling.logprob_ids:
        logprobs = replace(logprobs, asked=asked_logprobs(row))
    return RowTokens(row.id, (token_id,), () if logprobs is None else (logprobs,))


def _prompt_logprobs(chunk: Chunk) -> tuple[TokenLogprobs, ...]:
    following = chunk.token_ids[1:] if chunk.next_id is None else (*chunk.token_ids[1:], chunk.next_id)
    noted = (_logprobs(token_id, chunk.num_top_logprobs) for token_id in following)
    return tuple(logprobs for logprobs in noted if logprobs is not None)


def _logprobs(token_id: int, num_top: int | None) -> TokenLogprobs | None:
    if num_top is None:
        return None
    others = [candidate for candidate in range(num_top + 1) if candidate != token_id]
    top = [(token_id, -0.125), *((candidate, -3.0 - rank) for rank, candidate in enumerate(others))]
    return TokenLogprobs(-0.125, tuple(top[:num_top]))
