"""Embedding jobs: resolve the model, encode the inputs, check them all, compute them in turn.

The engine receives the inputs as prompts without an answer, a few at a time, so that other requests do not wait for
all of them. Independent of HTTP and of dialects.
"""

from __future__ import annotations

import logging
import math
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from mlx_backend.api.errors import ContextLengthExceeded
from mlx_backend.api.interface import Engine, GenerationRequest, ModelInfo, Priority, PromptEvent
from server.errors import InternalError, InvalidRequest, to_api_error
from server.security.tenant import Tenant
from server.service.encoding import LONG_TEXT_CHARS, run_in_text_thread
from server.service.job import TextPrompt, TokenPrompt
from server.service.live import LiveRequest
from server.service.measures import RequestEnd
from server.service.record import describe_failure, log_prompts
from server.service.registry import ModelRegistry, ServedModel
from server.service.token_ids import check_known
from server.text.bounded_encoding import TooLong, encode_up_to
from server.text.tokenizer import Tokenizer

logger = logging.getLogger("pippin.request")

_AT_ONCE = 16
"""Inputs of one job that are in the engine at once."""

_ENDS: Mapping[str, RequestEnd] = {"done": "stop", "aborted": "aborted"}

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingJob:
    """Request for embeddings. `params`: the inputs' names on the wire, for error bodies."""

    request_id: str
    model: str
    inputs: tuple[TextPrompt | TokenPrompt, ...]
    params: tuple[str, ...]
    dimensions: int | None = None
    """Number of leading dimensions to return; None: all."""
    dimensions_param: str
    tenant: Tenant = field(default_factory=Tenant)
    priority: Priority = "normal"


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector per input, in order, as little-endian float32."""

    model_id: str
    vectors: list[bytes]
    num_prompt_tokens: int


async def embed(registry: ModelRegistry, job: EmbeddingJob) -> Embeddings:
    """Return all vectors of a job. Raises APIError and EngineError; an invalid input fails the job early."""
    began = time.perf_counter()
    log_prompts(job.request_id, job.inputs)
    async with registry.use(job.model) as model:
        return await _embed(model, registry.adapter_of(job.model), job, began)


async def _embed(model: ServedModel, adapter: str, job: EmbeddingJob, began: float) -> Embeddings:
    name = model.name_with(adapter)
    tokenizer, info = model.ready()
    _check_model(model, info, job)
    prompts = await _encode(tokenizer, job, info.context_limit)
    for ids, param in zip(prompts, job.params, strict=True):
        _check_input(ids, param, info)
    num_tokens, ended = sum(map(len, prompts)), "aborted"
    rate_grant = job.tenant.reserve(num_tokens)
    vectors: list[bytes] = []
    leave = model.measures.live.add(lambda: _describe(job, began, prompts, len(vectors)))
    try:
        await _compute(model.engine, adapter, job, prompts, vectors)
        ended = "done"
    except Exception as error:
        ended = describe_failure(error)
        raise
    finally:
        leave()
        rate_grant.settle(num_tokens)
        took_s = time.perf_counter() - began
        model.measures.ended(_ENDS.get(ended, "error"), num_tokens, 0, took_s)
        logger.info(
            "%s model=%s%s inputs=%d prompt=%d took=%.3fs embedding=%s",
            *(job.request_id, name, job.tenant.mark, len(prompts), num_tokens, took_s, ended),
            extra={
                "fields": _fields(job.request_id, name, len(prompts), num_tokens, took_s, ended) | job.tenant.fields
            },
        )
    return Embeddings(name, [_finish(vector, job, info) for vector in vectors], num_tokens)


def _fields(id: str, model: str, num_inputs: int, num_tokens: int, took_s: float, ended: str) -> dict[str, Any]:
    """Return the job's log line in machine-readable form."""
    names = ("request_id", "id", "model", "inputs", "prompt_tokens", "took_s", "finish")
    return dict(zip(names, (id, id, model, num_inputs, num_tokens, round(took_s, 6), ended), strict=True))


def _describe(job: EmbeddingJob, began: float, prompts: Sequence[Ids], num_done: int) -> LiveRequest:
    """Return a snapshot for monitoring."""
    return LiveRequest(
        request_id=job.request_id,
        kind="embedding",
        state="reading",
        started_at=began,
        num_prompt_tokens=sum(map(len, prompts)),
        num_computed_tokens=sum(map(len, prompts[:num_done])),
    )


def numbers(vector: bytes) -> tuple[float, ...]:
    """Return a vector's numbers."""
    return struct.unpack(f"<{len(vector) // 4}f", vector)


def _check_model(model: ServedModel, info: ModelInfo, job: EmbeddingJob) -> None:
    if info.embedding is None:
        raise InvalidRequest(
            f"The model '{model.id}' does not support embeddings: {info.no_embedding_reason}.",
            param="model",
            code="unsupported_model",
        )
    if job.dimensions is not None and job.dimensions > info.embedding.dim:
        name = job.dimensions_param
        raise InvalidRequest(
            f"Invalid value for '{name}': this model's vectors have {info.embedding.dim} dimensions, "
            f"not {job.dimensions}.",
            param=name,
            code="invalid_value",
        )


async def _encode(tokenizer: Tokenizer, job: EmbeddingJob, context: int) -> list[Ids]:
    """Return token ids of each input; an empty text has none, not even special tokens. Raises APIError."""

    def encode() -> list[Ids]:
        return [
            _encode_input(tokenizer, each, param, context) for each, param in zip(job.inputs, job.params, strict=True)
        ]

    num_chars = sum(len(each.text) for each in job.inputs if isinstance(each, TextPrompt))
    return await run_in_text_thread(encode) if num_chars > LONG_TEXT_CHARS else encode()


def _encode_input(tokenizer: Tokenizer, prompt: TextPrompt | TokenPrompt, param: str, context: int) -> Ids:
    if isinstance(prompt, TokenPrompt):
        return prompt.ids
    if not prompt.text:
        return ()
    try:
        return tuple(encode_up_to(tokenizer, prompt.text, context, add_special_tokens=prompt.add_special_tokens))
    except TooLong as error:
        raise to_api_error(ContextLengthExceeded(error.num_tokens, 0, context, is_least=True), param) from error


def _check_input(ids: Ids, param: str, info: ModelInfo) -> None:
    if not ids:
        raise InvalidRequest(f"Invalid value for '{param}': it is empty.", param=param, code="invalid_value")
    check_known(ids, info.vocab_size, param)
    if len(ids) > info.context_limit:
        raise to_api_error(ContextLengthExceeded(len(ids), 0, info.context_limit), param)


async def _compute(
    engine: Engine, adapter: str, job: EmbeddingJob, prompts: Sequence[Ids], vectors: list[bytes]
) -> None:
    """Append each input's vector to `vectors`, in order."""
    requests = [
        GenerationRequest(
            request_id=f"{job.request_id}-{position}",
            prompt_ids=ids,
            max_tokens=0,
            embeds=True,
            tenant=job.tenant.name,
            priority=job.tenant.allow(job.priority),
            adapter=adapter,
        )
        for position, ids in enumerate(prompts)
    ]
    for first in range(0, len(requests), _AT_ONCE):
        job.tenant.revocation.check()
        vectors += await _compute_together(engine, requests[first : first + _AT_ONCE])


async def _compute_together(engine: Engine, requests: Sequence[GenerationRequest]) -> list[bytes]:
    found: dict[int, bytes] = {}
    async with aclosing(engine.submit(requests)) as stream:
        async for batch in stream:
            for event in batch:
                if isinstance(event, PromptEvent) and event.embedding is not None:
                    found[event.index] = event.embedding
    return [found[index] for index in range(len(requests))]


def _finish(vector: bytes, job: EmbeddingJob, info: ModelInfo) -> bytes:
    """Return the requested dimensions, renormalized to length 1 if the model's vectors are normalized."""
    known = numbers(vector)
    if not math.isfinite(sum(known)):
        raise InternalError("The model computed a vector with values that are not finite.")
    if job.dimensions is None or job.dimensions == len(known):
        return vector
    kept = known[: job.dimensions]
    length = math.hypot(*kept) if info.embedding is not None and info.embedding.is_normalized else 1.0
    return struct.pack(f"<{len(kept)}f", *(number / (length or 1.0) for number in kept))
