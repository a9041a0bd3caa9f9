"""`POST /tokenize` and `POST /detokenize`, as in vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Response

from server.dialects.answers import ignored_header
from server.dialects.openai_schema import error_responses
from server.dialects.openai_shared import NO_EFFECT, check_extra
from server.dialects.parts import ServerParts
from server.dialects.published import PublishedRoute
from server.dialects.tokenize.schema import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeMessage,
    TokenizeRequest,
)
from server.dialects.volatile_lines import settle_prompt
from server.errors import InvalidRequest
from server.service import tokenization
from server.service.job import ChatPrompt
from server.service.tokenization import Conversation, conversation_of
from server.text.chat_template import Ending

_FAILURES = error_responses(400, 404, 413, 503)

_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "chat_template": (),
    "mm_processor_kwargs": (),
}
_OF_MESSAGES = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools")


def build_router(parts: ServerParts) -> APIRouter:
    """Build the routes of one server."""
    router = APIRouter(route_class=PublishedRoute, tags=["Tokens"])

    @router.post("/tokenize", responses=_FAILURES)
    async def tokenize(response: Response, body: TokenizeRequest) -> TokenizeAnswer:
        """Return the tokens of a text, or of a conversation rendered for the model."""
        source = _decode_source(body)
        response.headers.update(ignored_header(check_extra(body.model_extra or {}, _UNSUPPORTED, NO_EFFECT)))
        if isinstance(source, Conversation):
            prompt = ChatPrompt(
                tuple(source.messages), source.template_kwargs, tuple(source.tools), ending=source.ending
            )
            prompt, settled = settle_prompt(prompt, parts.config.api)
            source = conversation_of(prompt)
            response.headers.update(settled)
        # A chat template writes the special tokens itself.
        specials = isinstance(source, str) if body.add_special_tokens is None else body.add_special_tokens
        tokens = await tokenization.tokenize(
            parts.registry,
            body.model or "",
            source,
            param="prompt" if isinstance(source, str) else "messages",
            add_special_tokens=specials,
            with_texts=bool(body.return_token_strs),
        )
        return TokenizeAnswer(
            count=len(tokens.ids),
            max_model_len=tokens.context_limit,
            tokens=tokens.ids,
            token_strs=tokens.texts if body.return_token_strs else None,
        )

    @router.post("/detokenize", responses=_FAILURES)
    async def detokenize(response: Response, body: DetokenizeRequest) -> DetokenizeAnswer:
        """Return the text of tokens, special ones by their names."""
        response.headers.update(ignored_header(check_extra(body.model_extra or {}, {}, NO_EFFECT)))
        text = await tokenization.detokenize(parts.registry, body.model or "", body.tokens, param="tokens")
        return DetokenizeAnswer(prompt=text)

    return router


def _decode_source(body: TokenizeRequest) -> str | Conversation:
    if (body.prompt is None) == (body.messages is None):
        raise _invalid("prompt", "Give either 'prompt' or 'messages'.")
    if body.messages is None:
        for name in _OF_MESSAGES:
            if getattr(body, name) is not None:
                raise _invalid(name, f"'{name}' is for 'messages'; a prompt is taken as it is.")
        return body.prompt or ""
    return Conversation(
        messages=tuple(map(_decode_message, body.messages)),
        tools=tuple(body.tools or ()),
        template_kwargs=body.chat_template_kwargs or {},
        ending=_decode_ending(body, body.messages[-1]),
    )


def _decode_ending(body: TokenizeRequest, last: TokenizeMessage) -> Ending:
    is_prefix = (last.model_extra or {}).get("prefix") is True
    if not body.continue_final_message and not is_prefix:
        return "closed" if body.add_generation_prompt is False else "answer"
    if body.add_generation_prompt:
        raise _invalid(
            "continue_final_message", "The last message cannot be continued with 'add_generation_prompt' true."
        )
    if last.role != "assistant":
        raise _invalid("continue_final_message", "Only an assistant's message can be continued.")
    return "continued"


def _decode_message(message: TokenizeMessage) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    others = {name: value for name, value in (message.model_extra or {}).items() if name != "prefix"}
    return {"role": role, "content": message.content, **others}


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")
