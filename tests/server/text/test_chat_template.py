"""The template's refusals in its own words, and what a request may not override."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from server.text.chat_template import TemplateError, render_text
from server.text.tokenizer import ByteTokenizer

_MESSAGES = ({"role": "user", "content": "hi"},)


class _Raising(ByteTokenizer):
    """A tokenizer whose template raises what it is told to."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        template_kwargs: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        raise self._error


def test_the_prompt_is_the_templates_text():
    assert render_text(ByteTokenizer(), _MESSAGES, {}) == "user: hi\nassistant:"


@pytest.mark.parametrize(
    "name", ["messages", "tokenize", "add_generation_prompt", "return_dict", "chat_template", "tokenizer", "tools"]
)
def test_a_request_cannot_replace_the_template_or_its_frame(name):
    with pytest.raises(TemplateError, match=rf"may not include {name}$"):
        render_text(ByteTokenizer(), _MESSAGES, {name: "x"})


def test_all_refused_arguments_are_named():
    with pytest.raises(TemplateError, match="chat_template, tokenize"):
        render_text(ByteTokenizer(), _MESSAGES, {"tokenize": True, "chat_template": "x", "enable_thinking": True})


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("roles must alternate"), "messages: roles must alternate"),
        (TypeError("can only concatenate str"), "messages: TypeError: can only concatenate str"),
        (KeyError("role"), "messages: KeyError: 'role'"),
        (ZeroDivisionError(), "messages: ZeroDivisionError"),
    ],
)
def test_what_the_template_raises_is_quoted(error, words):
    with pytest.raises(TemplateError, match=words) as caught:
        render_text(_Raising(error), _MESSAGES, {})
    assert caught.value.__cause__ is error


def test_no_messages_are_a_template_error():
    with pytest.raises(TemplateError, match="at least one message"):
        render_text(ByteTokenizer(), (), {})
