"""`POST /v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.dialects.openai_answers import Dialect, answer
from server.dialects.openai_chat.decode import decode
from server.dialects.openai_chat.encode import build_encoder, build_fold
from server.dialects.openai_chat.schema import ChatCompletion, ChatCompletionChunk, ChatRequest
from server.dialects.openai_schema import GENERATION_ERRORS, answer_response

router = APIRouter(tags=["OpenAI"])

_DIALECT = Dialect(build_encoder, build_fold)
_RESPONSES = {**answer_response(ChatCompletion, ChatCompletionChunk), **GENERATION_ERRORS}


@router.post("/v1/chat/completions", response_class=Response, responses=_RESPONSES)
async def create_chat_completion(request: Request, body: ChatRequest) -> Response:
    """Answer a conversation."""
    job, ignored = decode(body, request.state.request_id)
    return await answer(request, job, body, _DIALECT, ignored)
