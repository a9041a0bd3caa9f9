"""Scoring jobs: resolve the model, encode the pairs, check them all, compute their scores.

The engine receives the pairs as prompts, a few at a time, so that other requests do not wait for all of them. Pairs of
one query share their beginning, which the prefix cache holds after the first. Independent of HTTP.
"""

from __future__ import annotations

import logging
import math
import struct
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from mlx_backend.api.errors import ContextLengthExceeded
from mlx_backend.api.interface import (
    GenerationRequest,
    ModelInfo,
    Priority,
    PromptEvent,
    SamplingParams,
    ScoringInfo,
    TokenEvent,
)
from server.adapters import served_name
from server.errors import InternalError, InvalidRequest, to_api_error
from server.security.tenant import Tenant
from server.service.encoding import LONG_TEXT_CHARS, run_in_text_thread
from server.service.live import LiveRequest
from server.service.measures import RequestEnd
from server.service.record import describe_failure, log_prompts
from server.service.registry import ModelRegistry, ServedModel
from server.text.bounded_encoding import TooLong
from server.text.pairs import INSTRUCTION, Pair, PairEncoder, QueryTooLong
from server.text.tokenizer import Tokenizer

logger = logging.getLogger("pippin.request")

_AT_ONCE = 16
"""Pairs of one job that are in the engine at once."""


@dataclass(frozen=True, slots=True)
class TextPair:
    """A query and a document; `param`: the document's name on the wire, for error bodies."""

    query: str
    document: str
    param: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringJob:
    """Pairs to score, and limits to cut them to; None: no cut, and a prompt that is too long is refused."""

    request_id: str
    model: str
    pairs: tuple[TextPair, ...]
    query_param: str
    instruction: str | None = None
    max_tokens_per_query: int | None = None
    max_tokens_per_doc: int | None = None
    max_tokens: int | None = None
    """Limit of a whole prompt; -1: the model's context."""
    max_tokens_param: str
    cache_salt: str = ""
    uses_prefix_cache: bool = True
    tenant: Tenant = field(default_factory=Tenant)
    priority: Priority = "normal"


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-odds that a document is relevant to its query, for each pair in order."""

    model_id: str
    log_odds: list[float]
    num_prompt_tokens: int
    num_cached_tokens: int
    num_truncated_tokens: int

    @property
    def probabilities(self) -> list[float]:
        return [sigmoid(each) for each in self.log_odds]


def sigmoid(value: float) -> float:
    """Return 1 / (1 + e^-value) without overflow."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


async def score(registry: ModelRegistry, job: ScoringJob) -> Scores:
    """Return the scores of a job. Raises APIError and EngineError; an invalid pair fails the job early."""
    began = time.perf_counter()
    log_prompts(job.request_id, job.pairs)
    async with registry.use(job.model) as model:
        return await _score(model, registry.adapter_of(job.model), job, began)


async def _score(model: ServedModel, adapter: str, job: ScoringJob, began: float) -> Scores:
    tokenizer, info = model.ready()
    scoring = _check_model(model, info)
    token_ids = _token_ids(model, tokenizer, scoring)
    pairs = await _encode(tokenizer, job, _context(info, scoring))
    prompts = [pair.ids for pair in pairs]
    num_tokens = sum(map(len, prompts))
    requests = [_request(job, adapter, position, ids, token_ids) for position, ids in enumerate(prompts)]
    rate_grant = job.tenant.reserve(num_tokens)
    computing = _Computing(model, job)
    leave = model.measures.live.add(lambda: _describe(job, began, prompts, len(computing.found)))
    ended = "aborted"
    model.ahead.stop()
    try:
        await computing.run(requests)
        ended = "done"
    except Exception as error:
        ended = describe_failure(error)
        raise
    finally:
        leave()
        rate_grant.settle(num_tokens)
        _record(model, adapter, job, num_tokens, time.perf_counter() - began, ended)
    num_truncated = sum(pair.num_truncated_tokens for pair in pairs)
    return Scores(
        served_name(model.id, adapter), computing.found, num_tokens, computing.num_cached_tokens, num_truncated
    )


def _record(model: ServedModel, adapter: str, job: ScoringJob, num_tokens: int, took_s: float, ended: str) -> None:
    """Write the job's log line, and add it to the measures."""
    ends: dict[str, RequestEnd] = {"done": "stop", "aborted": "aborted"}
    model.measures.ended(ends.get(ended, "error"), num_tokens, 0, took_s)
    name, num_pairs = served_name(model.id, adapter), len(job.pairs)
    fields = {"request_id": job.request_id, "id": job.request_id, "model": name, "inputs": num_pairs}
    fields |= {"prompt_tokens": num_tokens, "took_s": round(took_s, 6), "finish": ended, **job.tenant.fields}
    logger.info(
        "%s model=%s%s pairs=%d prompt=%d took=%.3fs scores=%s",
        *(job.request_id, name, job.tenant.mark, num_pairs, num_tokens, took_s, ended),
        extra={"fields": fields},
    )


def _describe(job: ScoringJob, began: float, prompts: Sequence[tuple[int, ...]], num_done: int) -> LiveRequest:
    return LiveRequest(
        request_id=job.request_id,
        kind="scoring",
        state="reading",
        started_at=began,
        num_prompt_tokens=sum(map(len, prompts)),
        num_computed_tokens=sum(map(len, prompts[:num_done])),
    )


def _check_model(model: ServedModel, info: ModelInfo) -> ScoringInfo:
    if info.scoring is None:
        raise _unsupported(f"The model '{model.id}' scores no documents: {info.no_scoring_reason}.")
    return info.scoring


def _unsupported(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="model", code="unsupported_model")


def _token_ids(model: ServedModel, tokenizer: Tokenizer, scoring: ScoringInfo) -> tuple[int, int] | None:
    """Return the tokens with the logits to compare; None for a model with its own score."""
    if scoring.kind == "head" or scoring.token_ids is not None:
        return scoring.token_ids
    found = [tokenizer.encode(word, add_special_tokens=False) for word in scoring.words]
    for word, ids in zip(scoring.words, found, strict=True):
        if len(ids) != 1:
            raise _unsupported(f"The model '{model.id}' scores no documents: its tokenizer has no token '{word}'.")
    return found[0][0], found[1][0]


def _context(info: ModelInfo, scoring: ScoringInfo) -> int:
    """Return the maximum length of a prompt, in tokens."""
    return info.context_limit - (scoring.kind == "tokens")


async def _encode(tokenizer: Tokenizer, job: ScoringJob, context: int) -> list[Pair]:
    """Return the prompts of all pairs. Raises APIError."""
    most = context if job.max_tokens == -1 else job.max_tokens

    def encode() -> list[Pair]:
        encoder = PairEncoder(
            tokenizer,
            INSTRUCTION if job.instruction is None else job.instruction,
            most_of_query=job.max_tokens_per_query,
            most_of_document=job.max_tokens_per_doc,
            most=None if most is None else min(most, context),
        )
        return [_encode_pair(encoder, pair, job, context) for pair in job.pairs]

    num_chars = sum(len(pair.query) + len(pair.document) for pair in job.pairs)
    return await run_in_text_thread(encode) if num_chars > LONG_TEXT_CHARS else encode()


def _encode_pair(encoder: PairEncoder, pair: TextPair, job: ScoringJob, context: int) -> Pair:
    try:
        found = encoder.encode(pair.query, pair.document, context)
    except TooLong as error:
        raise to_api_error(ContextLengthExceeded(error.num_tokens, 0, context, is_least=True), pair.param) from error
    except QueryTooLong as error:
        if job.max_tokens == -1 or (job.max_tokens or 0) >= context:
            raise to_api_error(ContextLengthExceeded(error.num_tokens, 0, context), job.query_param) from error
        message = f"The prompt has {error.num_tokens} tokens without the document, more than {job.max_tokens}."
        raise InvalidRequest(message, param=job.max_tokens_param, code="invalid_value") from error
    if len(found.ids) > context:
        raise to_api_error(ContextLengthExceeded(len(found.ids), 0, context), pair.param)
    return found


def _request(
    job: ScoringJob, adapter: str, position: int, ids: tuple[int, ...], token_ids: tuple[int, int] | None
) -> GenerationRequest:
    is_head = token_ids is None
    sampling = SamplingParams(temperature=0, num_logprobs=0, logprob_ids=token_ids or ())
    return GenerationRequest(
        request_id=f"{job.request_id}-{position}",
        prompt_ids=ids,
        max_tokens=0 if is_head else 1,
        embeds=is_head,
        sampling=SamplingParams() if is_head else sampling,
        tenant=job.tenant.name,
        priority=job.tenant.allow(job.priority),
        cache_salt=job.tenant.salt(job.cache_salt),
        uses_prefix_cache=job.uses_prefix_cache,
        adapter=adapter,
    )


class _Computing:
    """Scores of a job computed so far, in order."""

    def __init__(self, model: ServedModel, job: ScoringJob) -> None:
        self._model, self._job = model, job
        self.found: list[float] = []
        self.num_cached_tokens = 0

    async def run(self, requests: Sequence[GenerationRequest]) -> None:
        """Compute all scores, a few at a time. Raises APIError and EngineError."""
        for first in range(0, len(requests), _AT_ONCE):
            self._job.tenant.revocation.check()
            self.found += await self._compute(requests[first : first + _AT_ONCE])

    async def _compute(self, requests: Sequence[GenerationRequest]) -> list[float]:
        found: dict[int, float] = {}
        async with aclosing(self._model.engine.submit(requests)) as stream:
            async for batch in stream:
                for event in batch:
                    if isinstance(event, TokenEvent) and event.logprobs is not None:
                        relevant, irrelevant = event.logprobs.asked
                        found[event.index] = relevant - irrelevant
                    elif isinstance(event, PromptEvent) and event.embedding is not None:
                        (found[event.index],) = struct.unpack("<f", event.embedding)
            self.num_cached_tokens += stream.num_cached_tokens
        if not all(map(math.isfinite, found.values())):
            raise InternalError("The model computed a score that is no number.")
        return [found[index] for index in range(len(requests))]
