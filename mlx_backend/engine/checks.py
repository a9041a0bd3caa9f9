"""Checks of every request before it is queued. Any thread; no MLX."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_backend.api.errors import (
    ContextLengthExceeded,
    MemoryLimitExceeded,
    TooManyPrompts,
    UnknownAdapter,
    UnknownToken,
)
from mlx_backend.api.interface import GenerationRequest, ModelInfo
from mlx_backend.planning.admission import Budget, Reservation


def check_number(requests: Sequence[GenerationRequest], max_waiting: int) -> None:
    """Raise TooManyPrompts if the prompts could never wait together; a named tenant has half of the queue."""
    is_named = any(request.tenant for request in requests)
    limit = max(1, max_waiting // 2) if is_named else max_waiting
    if len(requests) > limit:
        raise TooManyPrompts(len(requests), limit)


def check_request(request: GenerationRequest, info: ModelInfo, budget: Budget | None) -> None:
    """Check a request. Raises ContextLengthExceeded, UnknownToken, UnknownAdapter, MemoryLimitExceeded."""
    if request.adapter and all(request.adapter != each.name for each in info.adapters):
        raise UnknownAdapter(request.adapter)
    if len(request.prompt_ids) + request.max_tokens > info.context_limit:
        raise ContextLengthExceeded(len(request.prompt_ids), request.max_tokens, info.context_limit)
    check_token_ids(request, info.vocab_size)
    if budget is not None:
        _check_memory(request, budget)


def _check_memory(request: GenerationRequest, budget: Budget) -> None:
    """Refuse a request that would not fit even alone."""
    total = len(request.prompt_ids) + request.max_tokens
    claim = Reservation(request.n, len(request.prompt_ids), total)
    if not budget.admits([claim]):
        needed, largest = budget.needed([claim]), budget.largest_alone(request.n)
        raise MemoryLimitExceeded(total, request.n, needed, budget.limit_bytes, largest)


def check_token_ids(request: GenerationRequest, vocab_size: int) -> None:
    """Refuse ids outside the vocabulary: for an id without a row, a device reads or writes out of bounds."""
    bias = [token_id for token_id, _ in request.sampling.logit_bias]
    for ids, is_bias in ((request.prompt_ids, False), (request.sampling.logprob_ids, False), (bias, True)):
        if ids and (min(ids) < 0 or max(ids) >= vocab_size):
            raise UnknownToken(next(i for i in ids if not 0 <= i < vocab_size), vocab_size, is_bias=is_bias)
