"""The mock runner: deterministic tokens, a pace, and faults, in place of a device.

It replaces the lowest edge only: the engine, the scheduler and everything above are the real ones. A
token is a byte of UTF-8 text, ids 0 to 255; the text depends on the prompt, on which of the n
continuations it is and, unless the temperature is 0, on the seed. With a tokenizer of another model the tokens are that
one's, and the text comes with the request, as it does where a script says it. Nothing here is a model.
"""

from __future__ import annotations

import functools
import random
import re
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlx_backend.api.errors import ModelLoadError, OutOfMemory, SequenceFailed
from mlx_backend.api.interface import (
    AdapterInfo,
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
    MaskBits,
    NewRow,
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
from mlx_backend.runners.mock_measures import EMBEDDING, SCORING, asked_logprobs, vector
from mlx_backend.runners.mock_vocabulary import vocab_size_of

VOCAB_SIZE = 260
WORDS = (
    *("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "and", "again"),
    *("naïve", "café", "waiters", "juggle", "你好", "🙂", "emoji"),
)
_CLOSES, _PUTS_OFF = frozenset(b'"]}'), frozenset(b" \n0123456789,")
"""Bytes that bring the end of an answer in JSON closer, and bytes with which it could go on and on."""
_MOST_RANDOM_TOKENS = 100
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
    """What goes wrong, at which decode step, counted from 1, or at every so many of them.

    fail: the first sequence of that step is lost. oom: the rows of all are. hang: the step never ends. die: the
    device thread does.
    """

    kind: str
    step: int
    is_repeated: bool = False

    @classmethod
    def parse(cls, text: str) -> Fault:
        """`KIND@STEP` or `KIND/STEPS`. Raises ModelLoadError."""
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
    """A row, and what the mock has written for it since it joined."""

    written: list[int] = field(default_factory=list)


class MockRunner:
    """Implements `runners.base.Runner` without a device."""

    def __init__(self, config: EngineConfig) -> None:
        """Raises ModelLoadError for a tokenizer's folder that cannot be used, and for a fault that there is not."""
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
        """The tokens that are computed of each."""
        self._in_flight: deque[tuple[float, StepResult]] = deque()
        """When each step is due, and what it gave."""
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
        return ModelInfo(
            context_limit=fitting,
            context_limited_by=limited_by(self._config.context, limit, fitting),
            vocab_size=self._vocab_size,
            weights_bytes=_WEIGHTS_BYTES,
            memory=memory,
            kv_caches=(KVCacheReport(kind="mock", num_layers=1, bytes_per_token=_BYTES_PER_TOKEN),),
            embedding=EMBEDDING,
            scoring=SCORING,
            adapters=tuple(AdapterInfo(name=each.name, form="mock") for each in self._config.adapters),
        )

    def _plan_memory(self) -> MemoryReport | None:
        """A budget where a limit is configured: the mock's tokens are then counted as if they were held."""
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
        """The tokens that are computed of a prompt, or of a row with its prompt."""
        if source in self._prompts:
            return self._prompts[source]
        row = self._rows[source]
        return (*row.prompt_ids, *row.output_ids, *row.written)

    def _compute(self, chunk: Chunk) -> None:
        """Take the time of a chunk."""
        share = chunk.num_tokens / max(chunk.num_prompt_tokens - 1, 1)
        self._wait(self._pace.ttft_s * share)

    def _step_s(self, rows: Sequence[MockRow]) -> float:
        """What a decode step of these rows takes, seconds."""
        return self._pace.itl_s

    def _now(self) -> float:
        return time.monotonic()

    def _wait(self, seconds: float) -> None:
        """Do nothing for so long, or until the engine closes."""
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
        if self._fault is not None and self._fault.strikes(self._num_steps):
            self._fail(self._fault, rows)
        masks: MaskBits = ()
        if plan.masked:
            newest = ((each, self._rows[each].written[-1:]) for each in plan.masked)
            masks = read_masks(tuple((each, written[0] if written else None) for each, written in newest))
        bits = dict(masks)
        sampled = tuple(_sample(row, bits.get(row.id), self._vocab_size) for row in rows)
        for row, tokens in zip(rows, sampled, strict=True):
            row.written += tokens.token_ids
            row.num_started_tokens += 1
        # one step after the other, as a device computes them, though the next is handed over early
        self._free_at = max(self._free_at, self._now()) + self._step_s(rows)
        self._in_flight.append((self._free_at, StepResult(sampled)))

    def collect(self) -> StepResult:
        due, result = self._in_flight.popleft()
        self._wait(max(due - self._now(), 0.0))
        return result

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
    """What a mock takes; without `memory.limit_gb` nothing bounds it."""
    memory = replace(config.memory, reserve_gb=config.memory.reserve_gb or 0.0)
    context = config.context.limit or config.mock.context
    return footprint.estimate_footprint(_budget(0), context, memory, config.memory.limit_bytes)


def _budget(limit_bytes: int) -> Budget:
    part = PartShape(num_heads=1, dim=_BYTES_PER_TOKEN // 2, itemsize=1)
    return Budget(_SHAPE, [CachePlan(CacheShape("plain", part, part))], limit_bytes)


def _sample(row: Row, bits: bytes | None, vocab_size: int) -> RowTokens:
    """`bits`: which tokens a grammar allows."""
    text = _text_of(row.new)
    position = row.num_started_tokens
    ended = position >= text.length and bool(row.stop_ids) and not row.is_short
    token_id = min(row.stop_ids) if ended else text.token(position)
    if row.is_short and token_id in row.stop_ids:
        token_id = next(other for other in range(min(97, vocab_size - 1), vocab_size) if other not in row.stop_ids)
    if bits is not None:
        token_id = _choose(bits, token_id, row, vocab_size)
    logprobs = _logprobs(token_id, row.sampling.num_logprobs)
    if logprobs is not None and row.sampling.logprob_ids:
        logprobs = replace(logprobs, asked=asked_logprobs(row))
    return RowTokens(row.id, (token_id,), () if logprobs is None else (logprobs,))


def _choose(bits: bytes, wanted: int, row: Row, vocab_size: int) -> int:
    """A token that a grammar allows: the end, else one that brings it closer, else `wanted` before others.

    What a script says comes first, as far as it is allowed, and so does `wanted` where the end is allowed, too. With a
    temperature, now and then any of the allowed, as long as the answer is not long yet.
    """
    given, stop_ids = row.new.mock, row.stop_ids
    may_end = any(_is_allowed(bits, token_id) for token_id in stop_ids)
    if (given is not None or may_end) and _is_allowed(bits, wanted):
        return wanted
    closes, puts_off = (_CLOSES, _PUTS_OFF) if given is None else (given.closing_ids, given.filling_ids)
    allowed = [token_id for token_id in range(vocab_size) if _is_allowed(bits, token_id)]
    if given is None and _is_random(row.new) and allowed and row.num_started_tokens < _MOST_RANDOM_TOKENS:
        seed, place = row.sampling.seed, row.num_started_tokens
        drawn = zlib.crc32(repr((row.prompt_ids, row.new.ordinal, seed, place)).encode())
        if drawn % 3 == 0:
            return allowed[drawn // 3 % len(allowed)]
    return min(
        allowed or [wanted],
        key=lambda token_id: (
            token_id not in stop_ids,
            token_id not in closes,
            token_id in puts_off,
            token_id != wanted,
            token_id,
        ),
    )


def _is_allowed(bits: bytes, token_id: int) -> bool:
    return bool(bits[token_id // 8] >> token_id % 8 & 1)


def _prompt_logprobs(chunk: Chunk) -> tuple[TokenLogprobs, ...]:
    following = chunk.token_ids[1:] if chunk.next_id is None else (*chunk.token_ids[1:], chunk.next_id)
    noted = (_logprobs(token_id, chunk.num_top_logprobs) for token_id in following)
    return tuple(logprobs for logprobs in noted if logprobs is not None)


def _is_random(new: NewRow) -> bool:
    return new.sampling.temperature > 0


def _logprobs(token_id: int, num_top: int | None) -> TokenLogprobs | None:
    if num_top is None:
        return None
    others = [candidate for candidate in range(num_top + 1) if candidate != token_id]
    top = [(token_id, -0.125), *((candidate, -3.0 - rank) for rank, candidate in enumerate(others))]
    return TokenLogprobs(-0.125, tuple(top[:num_top]))


class _GivenText:
    """The tokens that came with a request; what is wanted beyond them is the same again."""

    def __init__(self, ids: tuple[int, ...]) -> None:
        self._ids = ids or (0,)
        self.length = len(ids)

    def token(self, position: int) -> int:
        return self._ids[position % len(self._ids)]


class _Text:
    """Words without end, as bytes; `length` bytes are what the mock says before it stops by itself."""

    def __init__(self, source: random.Random) -> None:
        self._words = _words(source)
        self._bytes = bytearray()
        for _ in range(source.randint(8, 40)):
            self._bytes += next(self._words)
        self.length = len(self._bytes)

    def token(self, position: int) -> int:
        while position >= len(self._bytes):
            self._bytes += next(self._words)
        return self._bytes[position]


def _words(source: random.Random) -> Iterator[bytes]:
    yield source.choice(WORDS).encode()
    while True:
        yield b" " + source.choice(WORDS).encode()


def _text_of(new: NewRow) -> _Text | _GivenText:
    if new.mock is not None:
        return _GivenText(new.mock.outputs[new.ordinal])
    return _continuation(new.prompt_ids, new.ordinal, new.sampling.seed if _is_random(new) else None)


@functools.lru_cache(maxsize=1024)
def _continuation(prompt_ids: tuple[int, ...], ordinal: int, seed: int | None) -> _Text:
    key = zlib.crc32(repr((prompt_ids, ordinal, seed)).encode())
    return _Text(random.Random(key))
