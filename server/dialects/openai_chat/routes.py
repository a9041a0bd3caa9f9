"""`POST /v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.dialects.openai_chat.decode import decode
from server.dialects.openai_chat.encode import build_encoder, fold
from server.dialects.openai_chat.schema import ChatRequest
from server.dialects.openai_shared import ERROR_RESPONSES, OK_RESPONSE, Dialect, answer

router = APIRouter(tags=["OpenAI"])

_DIALECT = Dialect(build_encoder, fold)


@router.post("/v1/chat/completions", response_class=Response, responses={**ERROR_RESPONSES, **OK_RESPONSE})
async def create_chat_completion(request: Request, body: ChatRequest) -> Response:
    """Answer a conversation."""
    job, ignored = decode(body, request.state.request_id)
    return await answer(request, job, body, _DIALECT, ignored)
