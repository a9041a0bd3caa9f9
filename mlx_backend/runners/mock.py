"""The mock runner: deterministic tokens, a pace, and faults, in place of a device.

It replaces the lowest edge only: the engine, the scheduler and everything above are the real ones. A
token is a byte of UTF-8 text, ids 0 to 255; the text depends on the prompt, on which of the n
continuations it is and, unless the temperature is 0, on the seed. With a tokenizer of another model the tokens are that
one's, and the text comes with the request, as it does where a script says it. Nothing here is a model.
"""

from __future__ import annotations

import collections.abc
import functools
import math
import random
import re
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_backend import footprint
from mlx_backend.admission import Budget
from mlx_backend.errors import ModelLoadError, OutOfMemory, SequenceFailed
from mlx_backend.interface import (
    EmbeddingInfo,
    EngineConfig,
    Footprint,
    KVCacheReport,
    LoadProgress,
    MemoryReport,
    ModelInfo,
    TokenLogprobs,
)
from mlx_backend.kv_cache.plan import CachePlan, CacheShape, PartShape
from mlx_backend.memory import ModelShape
from mlx_backend.prefix_cache.store_mock import MockStore
from mlx_backend.runners.base import Sampled, Step, limited_by
from mlx_backend.runners.mock_vocabulary import vocab_size_of
from mlx_backend.sampling.grammar import read_masks
from mlx_backend.scheduler import Chunk
from mlx_backend.sequence import Prefill, Sequence

VOCAB_SIZE = 260
EMBEDDING = EmbeddingInfo(dim=16, pooling="last", is_normalized=True)
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
        self._rows: tuple[Sequence, ...] = ()
        self._drawn: dict[Sequence, int] = {}
        """The newest step's tokens."""

    budget: Budget | None = None
    prefix_store = MockStore(_BYTES_PER_TOKEN)

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

    def prefill(self, chunk: Chunk) -> None:
        chunk.prefill.state = chunk.start + chunk.num_tokens
        self._compute(chunk)
        _note_prompt(chunk, chunk.prefill.num_top_logprobs)
        if chunk.prefill.request.embeds and chunk.start + chunk.num_tokens == chunk.prefill.num_tokens:
            chunk.prefill.embedding = _vector(chunk.prefill.request.prompt_ids)

    def _compute(self, chunk: Chunk) -> None:
        """Take the time of a chunk."""
        share = chunk.num_tokens / max(chunk.prefill.num_tokens - 1, 1)
        self._wait(self._pace.ttft_s * share)

    def _step_s(self, sequences: collections.abc.Sequence[Sequence]) -> float:
        """What a decode step of these rows takes, seconds."""
        return self._pace.itl_s

    def _now(self) -> float:
        return time.monotonic()

    def _wait(self, seconds: float) -> None:
        """Do nothing for so long, or until the engine closes."""
        self._interrupted.wait(seconds)

    def start(self, sequences: collections.abc.Sequence[Sequence]) -> Step:
        self._num_steps += 1
        if self._fault is not None and self._fault.strikes(self._num_steps):
            self._fail(self._fault, sequences)
        self._rows = tuple(sequences)
        in_flight = [
            self._drawn.get(row) if row.num_started_tokens > len(row.output_ids) else None for row in sequences
        ]
        masks = read_masks(sequences, in_flight)
        held = dict(masks.bits)
        size = self._vocab_size
        sampled = tuple(_sample(sequence, held.get(place), size) for place, sequence in enumerate(sequences))
        self._drawn = {each.sequence: each.token_id for each in sampled}
        for sequence in sequences:
            sequence.num_started_tokens += 1
        # one step after the other, as a device computes them, though the next is handed over early
        self._free_at = max(self._free_at, self._now()) + self._step_s(sequences)
        return Step(self._rows, (self._free_at, sampled), tuple(masks.failures))

    def collect(self, step: Step) -> list[Sampled]:
        due, sampled = step.state
        self._wait(max(due - self._now(), 0.0))
        return list(sampled)

    def idle(self) -> None:
        self._rows, self._drawn = (), {}

    def kv_bytes(self, prefills: Iterable[Prefill]) -> int:
        num_tokens = sum(row.num_computed_tokens for row in self._rows) + sum(p.num_computed_tokens for p in prefills)
        return num_tokens * _BYTES_PER_TOKEN

    def device_bytes(self) -> tuple[int, int]:
        return _WEIGHTS_BYTES, _WEIGHTS_BYTES

    def interrupt(self) -> None:
        self._interrupted.set()

    def close(self) -> None:
        self._rows = ()

    def _fail(self, fault: Fault, sequences: collections.abc.Sequence[Sequence]) -> None:
        if fault.kind == "fail":
            raise SequenceFailed("the mock was told to fail this sequence", sequences[:1])
        if fault.kind == "oom":
            raise OutOfMemory("the mock was told to run out of memory", sequences)
        if fault.kind == "die":
            raise RuntimeError("the mock was told to kill the device thread")
        self._interrupted.wait()


def measure(config: EngineConfig) -> Footprint:
    """What a mock takes; without `memory.limit_gb` nothing bounds it."""
    memory = replace(config.memory, reserve_gb=config.memory.reserve_gb or 0.0)
    context = config.context.limit or config.mock.context
    return footprint.measure(_budget(0), context, memory, config.memory.limit_bytes)


def _budget(limit_bytes: int) -> Budget:
    part = PartShape(num_heads=1, dim=_BYTES_PER_TOKEN // 2, itemsize=1)
    return Budget(_SHAPE, [CachePlan(CacheShape("plain", part, part))], limit_bytes)


def _sample(sequence: Sequence, bits: bytes | None, vocab_size: int) -> Sampled:
    """`bits`: which tokens a grammar allows."""
    request = sequence.request
    text = _text_of(sequence)
    position = sequence.num_started_tokens
    is_short = position < request.min_tokens
    ended = position >= text.length and bool(request.stop_ids) and not is_short
    token_id = min(request.stop_ids) if ended else text.token(position)
    if is_short and token_id in request.stop_ids:
        token_id = next(other for other in range(min(97, vocab_size - 1), vocab_size) if other not in request.stop_ids)
    if bits is not None:
        token_id = _choose(bits, token_id, sequence, vocab_size)
    return Sampled(sequence, token_id, _logprobs(token_id, request.sampling.num_logprobs))


def _choose(bits: bytes, wanted: int, sequence: Sequence, vocab_size: int) -> int:
    """A token that a grammar allows: the end, else one that brings it closer, else `wanted` before others.

    What a script says comes first, as far as it is allowed, and so does `wanted` where the end is allowed, too. With a
    temperature, now and then any of the allowed, as long as the answer is not long yet.
    """
    given, stop_ids = sequence.request.mock, sequence.request.stop_ids
    may_end = any(_is_allowed(bits, token_id) for token_id in stop_ids)
    if (given is not None or may_end) and _is_allowed(bits, wanted):
        return wanted
    closes, puts_off = (_CLOSES, _PUTS_OFF) if given is None else (given.closing_ids, given.filling_ids)
    allowed = [token_id for token_id in range(vocab_size) if _is_allowed(bits, token_id)]
    if given is None and _is_random(sequence) and allowed and sequence.num_started_tokens < _MOST_RANDOM_TOKENS:
        seed, place = sequence.request.sampling.seed, sequence.num_started_tokens
        drawn = zlib.crc32(repr((sequence.request.prompt_ids, sequence.ordinal, seed, place)).encode())
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


def _note_prompt(chunk: Chunk, num_top: int | None) -> None:
    following = chunk.prefill.token_ids(chunk.start + 1, chunk.start + chunk.num_tokens + 1)
    noted = (_logprobs(token_id, num_top) for token_id in following)
    chunk.prefill.logprobs += [logprobs for logprobs in noted if logprobs is not None]


def _vector(prompt_ids: tuple[int, ...]) -> bytes:
    """A direction drawn by the prompt alone."""
    source = random.Random(zlib.crc32(repr(prompt_ids).encode()))
    drawn = [source.gauss() for _ in range(EMBEDDING.dim)]
    length = math.hypot(*drawn)
    return struct.pack(f"<{EMBEDDING.dim}f", *(number / length for number in drawn))


def _is_random(sequence: Sequence) -> bool:
    return sequence.request.sampling.temperature > 0


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


def _text_of(sequence: Sequence) -> _Text | _GivenText:
    request = sequence.request
    if request.mock is not None:
        return _GivenText(request.mock.outputs[sequence.ordinal])
    return _continuation(request.prompt_ids, sequence.ordinal, request.sampling.seed if _is_random(sequence) else None)


@functools.lru_cache(maxsize=1024)
def _continuation(prompt_ids: tuple[int, ...], ordinal: int, seed: int | None) -> _Text:
    key = zlib.crc32(repr((prompt_ids, ordinal, seed)).encode())
    return _Text(random.Random(key))
