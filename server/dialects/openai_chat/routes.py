"""`POST /v1/chat/completions`."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.dialects.answers import AnswerWriters, answer
from server.dialects.openai_chat.decode import decode, decode_form
from server.dialects.openai_chat.encode import build_encoder, build_fold
from server.dialects.openai_chat.schema import ChatCompletion, ChatCompletionChunk, ChatRequest
from server.dialects.openai_grammar import check_numbers, schemas_of
from server.dialects.openai_schema import GENERATION_ERRORS, answer_response
from server.dialects.parts import ServerParts
from server.dialects.published import PublishedRoute

_RESPONSES = {**answer_response(ChatCompletion, ChatCompletionChunk), **GENERATION_ERRORS}


def build_router(parts: ServerParts) -> APIRouter:
    """Build the router of one server."""
    router = APIRouter(route_class=PublishedRoute, tags=["OpenAI"])

    @router.post("/chat/completions", include_in_schema=False)
    @router.post("/v1/chat/completions", response_class=Response, responses=_RESPONSES)
    async def create_chat_completion(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation."""
        has_tools = body.tools or body.functions
        tools = body.model_dump(include={"tools", "functions"}, exclude_none=True) if has_tools else {}
        await check_numbers(request, {**schemas_of(body), **tools})
        job, ignored = decode(body, request.state.request_id)
        form = decode_form(body, parts.config.api.thoughts_field)
        writers = AnswerWriters(partial(build_encoder, form=form), partial(build_fold, form=form))
        return await answer(parts, request, job, body, writers, ignored)

    return router
