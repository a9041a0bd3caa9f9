"""Rendering of messages to a prompt with the model's own chat template.

A template is a program: errors it raises are reported in its own words, and a request may not replace it. Message
contents are not checked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from server.text.tokenizer import Tokenizer

Ending = Literal["answer", "closed", "continued"]
"""End of a rendered conversation: where an answer begins, after its last message, or within its last message."""

_RESERVED = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "messages",
        "return_dict",
        "tokenize",
        "tokenizer",
        "tools",
    }
)


class TemplateError(Exception):
    """The chat template refused the messages or the arguments; the message quotes its error."""


def render_text(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    template_kwargs: Mapping[str, Any],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    add_generation_prompt: bool = True,
) -> str:
    """Return the prompt of a conversation, ready for the assistant's turn; special tokens are written by name.

    Without `add_generation_prompt` it ends with the last message. Raises TemplateError.
    """
    refused = sorted(_RESERVED & template_kwargs.keys())
    if refused:
        raise TemplateError(f"the chat template's arguments may not include {', '.join(refused)}")
    try:
        opening = {} if add_generation_prompt else {"add_generation_prompt": False}
        return tokenizer.render_chat(messages, {**template_kwargs, **opening}, tools)
    except Exception as error:
        # The template came with the model: it may raise anything, and none of it is a failure of this server.
        raise TemplateError(f"the chat template cannot render these messages: {_words(error)}") from error


def _words(error: Exception) -> str:
    """Return the text of a deliberate template error as it is; that of a bug in the template with its type's name."""
    name = type(error).__name__
    if not str(error):
        return name
    return str(error) if name in ("TemplateError", "ValueError") else f"{name}: {error}"
