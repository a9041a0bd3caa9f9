"""`POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.dialects.answers import ignored_header
from server.dialects.openai_embeddings.decode import decode
from server.dialects.openai_embeddings.encode import encode
from server.dialects.openai_embeddings.schema import EmbeddingAnswer, EmbeddingRequest
from server.dialects.openai_schema import GENERATION_ERRORS, Responses
from server.dialects.parts import ServerParts
from server.dialects.priorities import priority_header
from server.dialects.published import PublishedRoute
from server.disconnect import ClientGone, while_connected
from server.service.embedding import embed

_RESPONSES: Responses = {200: {"model": EmbeddingAnswer, "description": "The vectors"}}


def build_router(parts: ServerParts) -> APIRouter:
    """Build the routes of one server."""
    router = APIRouter(route_class=PublishedRoute, tags=["OpenAI"])

    @router.post("/embeddings", include_in_schema=False)
    @router.post("/v1/embeddings", response_class=Response, responses={**_RESPONSES, **GENERATION_ERRORS})
    async def create_embeddings(request: Request, body: EmbeddingRequest) -> Response:
        """Compute a vector of each input, with an embedding model."""
        job, ignored = decode(body, request.state.request_id)
        job = replace(job, tenant=request.state.tenant)
        headers = ignored_header(ignored) | priority_header(body, job.tenant.allow(job.priority))
        try:
            embeddings = await while_connected(request.receive, embed(parts.registry, job))
        except ClientGone:
            return Response(status_code=499)
        # many vectors take a while to write
        written = await asyncio.to_thread(encode, embeddings, as_base64=body.encoding_format == "base64")
        return Response(written, headers=headers, media_type="application/json")

    return router
