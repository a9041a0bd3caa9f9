"""Decode the bodies of `/v1/rerank` and `/v1/score` into jobs, and refuse unsupported ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.dialects.openai_refusals import NO_EFFECT, check_extra
from server.dialects.priorities import decode_priority
from server.dialects.rerank.schema import RerankRequest, ScoreRequest, ScoringFields
from server.errors import InvalidRequest
from server.service.scoring import ScoringJob, TextPair

_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "max_chunks_per_doc": (),
    "mm_processor_kwargs": (),
    "rank_fields": (["text"],),
    "truncation_side": ("right",),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "add_special_tokens": (False,),
}
"""Fields of other servers' reranking, in the form of `openai_refusals`."""


def decode_rerank(body: RerankRequest, request_id: str) -> tuple[ScoringJob, list[str]]:
    """Return the job, and the names of ignored fields. Raises InvalidRequest."""
    pairs = tuple(TextPair(body.query, text, f"documents.{place}") for place, text in enumerate(body.documents))
    return _job(body, f"rerank-{request_id}", pairs, "query")


def decode_score(body: ScoreRequest, request_id: str) -> tuple[ScoringJob, list[str]]:
    """Return the same for pairs: one text with each of many, or two lists of equal length. Raises InvalidRequest."""
    firsts = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    seconds = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    if len(firsts) == 1:
        firsts = firsts * len(seconds)
    if len(firsts) != len(seconds):
        raise InvalidRequest(
            f"'text_1' has {len(firsts)} texts and 'text_2' has {len(seconds)}: give one and many, or as many of both.",
            param="text_2",
            code="invalid_value",
        )
    params = (f"text_2.{place}" if isinstance(body.text_2, list) else "text_2" for place in range(len(seconds)))
    pairs = tuple(TextPair(*pair) for pair in zip(firsts, seconds, params, strict=True))
    return _job(body, f"score-{request_id}", pairs, "text_1")


def _job(body: ScoringFields, id: str, pairs: tuple[TextPair, ...], query_param: str) -> tuple[ScoringJob, list[str]]:
    ignored = check_extra(body.model_extra or {}, _UNSUPPORTED, NO_EFFECT)
    if body.truncate_prompt_tokens == 0:
        message = "Invalid value for 'truncate_prompt_tokens': Input should be greater than or equal to 1, or -1."
        raise InvalidRequest(message, param="truncate_prompt_tokens", code="invalid_value")
    job = ScoringJob(
        request_id=id,
        model=body.model or "",
        pairs=pairs,
        query_param=query_param,
        instruction=body.instruction,
        max_tokens_per_query=body.max_tokens_per_query,
        max_tokens_per_doc=body.max_tokens_per_doc,
        max_tokens=body.truncate_prompt_tokens,
        max_tokens_param="truncate_prompt_tokens",
        cache_salt=body.cache_salt or "",
        uses_prefix_cache=body.prefix_cache is not False,
        priority=decode_priority(body.priority),
    )
    return job, ignored
