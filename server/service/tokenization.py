"""Conversion between text and the token ids of a served model. Independent of HTTP; generates nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.errors import InvalidRequest, UnsupportedParameter
from server.request_defaults import RequestDefaults
from server.service.defaults import with_messages
from server.service.encoding import LONG_TEXT_CHARS, run_in_text_thread
from server.service.job import ChatPrompt
from server.service.names import FieldNames
from server.service.registry import ModelRegistry
from server.service.token_ids import check_known
from server.text.bounded_encoding import count_tokens
from server.text.chat_template import Ending, TemplateError
from server.text.prefill import render_prompt
from server.text.tokenizer import Tokenizer
from server.text.volatile import with_reminders

LONGEST_TEXT_CHARS = 1_000_000


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in the chat template's own form, with the template's other inputs."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    ending: Ending = "answer"


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a text; `texts`: each token decoded alone."""

    ids: list[int]
    texts: list[str]
    context_limit: int


def conversation_of(prompt: ChatPrompt) -> Conversation:
    """Return the conversation as the model reads it."""
    messages = with_reminders(prompt.messages, prompt.reminders)
    return Conversation(messages, prompt.tools, prompt.template_kwargs, prompt.ending)


async def tokenize(
    registry: ModelRegistry,
    model: str,
    source: str | Conversation,
    *,
    param: str,
    add_special_tokens: bool,
    with_texts: bool,
) -> Tokens:
    """Return the tokens of a text or conversation; `param`: its wire name. Raises APIError and EngineError."""
    async with registry.use(model) as served:
        tokenizer, info = served.ready()

        def encode() -> Tokens:
            text = source if isinstance(source, str) else _render(tokenizer, source, param, served.defaults)
            if len(text) > LONGEST_TEXT_CHARS:
                raise InvalidRequest(
                    f"The text has {len(text)} characters; the limit is {LONGEST_TEXT_CHARS}.",
                    param=param,
                    code="too_long",
                )
            ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
            return Tokens(ids, [tokenizer.token_text(i) for i in ids] if with_texts else [], info.context_limit)

        is_short = isinstance(source, str) and len(source) <= LONG_TEXT_CHARS
        return encode() if is_short else await run_in_text_thread(encode)


def _render(tokenizer: Tokenizer, conversation: Conversation, param: str, defaults: RequestDefaults) -> str:
    try:
        messages, kwargs = with_messages(conversation.messages, defaults), conversation.template_kwargs
        return render_prompt(tokenizer, messages, kwargs, conversation.tools, conversation.ending).text
    except TemplateError as error:
        raise InvalidRequest(str(error), param=param, code="invalid_value") from error


async def count_prompt(registry: ModelRegistry, model: str, prompt: ChatPrompt, names: FieldNames) -> int:
    """Return the number of tokens that a chat's prompt would have. Raises APIError and EngineError.

    A text longer than LONGEST_TEXT_CHARS is counted in pieces, so that the count may be a token or two short.
    """
    async with registry.use(model) as served:
        tokenizer, _ = served.ready()
        if prompt.tools and not tokenizer.chat_format.has_tools:
            message = f"The parameter '{names.tools}' is not supported: the model cannot call tools."
            raise UnsupportedParameter(names.tools, message)
        source = conversation_of(prompt)

        def count() -> int:
            text = _render(tokenizer, source, names.prompt, served.defaults)
            try:
                if len(text) > LONGEST_TEXT_CHARS:
                    return count_tokens(tokenizer, text)
                return len(tokenizer.encode(text, add_special_tokens=False))
            except UnicodeError as error:
                message = f"Invalid value for '{names.prompt}': it is not valid Unicode."
                raise InvalidRequest(message, param=names.prompt) from error

        return await run_in_text_thread(count)


async def detokenize(registry: ModelRegistry, model: str, ids: Sequence[int], *, param: str) -> str:
    """Return the text of tokens, special ones by name. Raises APIError, naming `param`, and EngineError."""
    async with registry.use(model) as served:
        tokenizer, info = served.ready()
        check_known(ids, info.vocab_size, param)
        if len(ids) <= LONG_TEXT_CHARS:
            return _spell(tokenizer, ids)
        return await run_in_text_thread(_spell, tokenizer, ids)


def _spell(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    special = {i: _special_name(tokenizer, i) for i in set(ids)}
    written, run = [], list[int]()
    for token_id in ids:
        if name := special[token_id]:
            written += [tokenizer.decode(run), name]
            run = []
        else:
            run.append(token_id)
    return "".join([*written, tokenizer.decode(run)])


def _special_name(tokenizer: Tokenizer, token_id: int) -> str:
    """Return the name of a token that decoding omits; empty for any other."""
    name = tokenizer.token_text(token_id)
    return name if name.strip() and not tokenizer.decode([token_id]) else ""
