"""`POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.dialects.answers import ignored_header
from server.dialects.anthropic_messages.answer import MessageForm, answer
from server.dialects.anthropic_messages.blocks import Ignored
from server.dialects.anthropic_messages.decode import NAMES, decode, decode_prompt, hides_thinking
from server.dialects.anthropic_messages.published import ANSWERS, FAILURES
from server.dialects.anthropic_messages.schema import CountRequest, MessagesRequest, PromptFields, TokenCount
from server.dialects.openai_grammar import check_numbers
from server.dialects.parts import ServerParts
from server.dialects.published import PublishedRoute
from server.dialects.volatile_lines import settle_prompt
from server.service import tokenization

PREFIXES = ("/v1/messages", "/messages")


def build_router(parts: ServerParts) -> APIRouter:
    """Build the routes of one server."""
    router = APIRouter(route_class=PublishedRoute, tags=["Anthropic"])

    @router.post("/messages", include_in_schema=False)
    @router.post("/v1/messages", response_class=Response, responses={**ANSWERS, **FAILURES})
    async def create_message(request: Request, body: MessagesRequest) -> Response:
        """Answer a conversation."""
        await check_numbers(request, _schemas_of(body))
        job, ignored = decode(body, request.state.request_id)
        form = MessageForm(bool(body.stream), hides_thinking(body), body.context_management is not None)
        return await answer(parts, request, job, form, ignored)

    @router.post("/messages/count_tokens", include_in_schema=False)
    @router.post("/v1/messages/count_tokens", responses=FAILURES)
    async def count_tokens(response: Response, body: CountRequest) -> TokenCount:
        """Count the prompt tokens that the same body would have at `/v1/messages`."""
        ignored = Ignored()
        prompt, settled = settle_prompt(decode_prompt(body, ignored)[0], parts.config.api)
        number = await tokenization.count_prompt(parts.registry, body.model or "", prompt, NAMES)
        response.headers.update(ignored_header(ignored.names) | settled)
        return TokenCount(input_tokens=number)

    return router


def _schemas_of(body: PromptFields) -> dict[str, Any]:
    """Return the fields that contain schemas, by name."""
    names = {"tools", "output_config", "output_format"}
    return body.model_dump(include=names, exclude_none=True, by_alias=True)
