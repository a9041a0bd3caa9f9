"""`POST /v1/rerank` and `POST /v1/score`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.dialects.answers import TRUNCATED_HEADER, ignored_header
from server.dialects.openai_schema import GENERATION_ERRORS, Responses
from server.dialects.parts import ServerParts
from server.dialects.priorities import priority_header
from server.dialects.published import PublishedRoute
from server.dialects.rerank.decode import decode_rerank, decode_score
from server.dialects.rerank.encode import encode_rerank, encode_score
from server.dialects.rerank.schema import RerankAnswer, RerankRequest, ScoreAnswer, ScoreRequest, ScoringFields
from server.disconnect import ClientGone, while_connected
from server.service.scoring import Scores, ScoringJob, score

_RERANKED: Responses = {200: {"model": RerankAnswer, "description": "The documents, the most relevant first"}}
_SCORED: Responses = {200: {"model": ScoreAnswer, "description": "The scores"}}


def build_router(parts: ServerParts) -> APIRouter:
    """Build the routes of one server."""
    router = APIRouter(route_class=PublishedRoute, tags=["OpenAI"])

    @router.post("/rerank", include_in_schema=False)
    @router.post("/v2/rerank", include_in_schema=False)
    @router.post("/v1/rerank", response_class=Response, responses={**_RERANKED, **GENERATION_ERRORS})
    async def rerank(request: Request, body: RerankRequest) -> Response:
        """Order documents by their relevance to a query."""
        job, ignored = decode_rerank(body, request.state.request_id)
        documents = None if body.return_documents is False else body.documents
        raw = body.use_activation is False
        return await _answer(
            *(parts, request, job, body, ignored),
            lambda scores: encode_rerank(job.request_id, scores, documents, body.top_n, raw=raw),
        )

    @router.post("/score", include_in_schema=False)
    @router.post("/v1/score", response_class=Response, responses={**_SCORED, **GENERATION_ERRORS})
    async def create_scores(request: Request, body: ScoreRequest) -> Response:
        """Score pairs of texts."""
        job, ignored = decode_score(body, request.state.request_id)
        raw = body.use_activation is False
        return await _answer(
            *(parts, request, job, body, ignored), lambda scores: encode_score(job.request_id, scores, raw=raw)
        )

    return router


async def _answer(
    parts: ServerParts,
    request: Request,
    job: ScoringJob,
    body: ScoringFields,
    ignored: list[str],
    encode: Callable[[Scores], str],
) -> Response:
    job = replace(job, tenant=request.state.tenant)
    headers = ignored_header(ignored) | priority_header(body, job.tenant.allow(job.priority))
    try:
        scores = await while_connected(request.receive, score(parts.registry, job))
    except ClientGone:
        return Response(status_code=499)
    if scores.num_truncated_tokens:
        headers[TRUNCATED_HEADER] = str(scores.num_truncated_tokens)
    return Response(encode(scores), headers=headers, media_type="application/json")
