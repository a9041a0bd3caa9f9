"""`POST /v1/completions`."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.dialects.answers import AnswerWriters, answer
from server.dialects.openai_completions.decode import decode
from server.dialects.openai_completions.encode import Shown, build_encoder, build_fold
from server.dialects.openai_completions.schema import Completion, CompletionChunk, CompletionRequest
from server.dialects.openai_grammar import check_numbers, schemas_of
from server.dialects.openai_schema import GENERATION_ERRORS, answer_response
from server.dialects.parts import ServerParts
from server.dialects.published import PublishedRoute

_RESPONSES = {**answer_response(Completion, CompletionChunk), **GENERATION_ERRORS}


def build_router(parts: ServerParts) -> APIRouter:
    """Build the router of one server."""
    router = APIRouter(route_class=PublishedRoute, tags=["OpenAI"])

    @router.post("/completions", include_in_schema=False)
    @router.post("/v1/completions", response_class=Response, responses=_RESPONSES)
    async def create_completion(request: Request, body: CompletionRequest) -> Response:
        """Continue one or more prompts."""
        await check_numbers(request, schemas_of(body))
        job, ignored = decode(body, request.state.request_id)
        shown = Shown(
            echo=bool(body.echo),
            logprobs=body.logprobs is not None,
            token_ids=bool(body.return_token_ids),
            n=body.n or 1,
            best_of=job.n,
        )
        writers = AnswerWriters(partial(build_encoder, shown), partial(build_fold, shown))
        return await answer(parts, request, job, body, writers, ignored)

    return router
