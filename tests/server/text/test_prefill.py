"""A conversation whose last message goes on, by templates as models have them: what is read, and where it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from server.text.chat_template import TemplateError
from server.text.parsers.parts import ChatFormat
from server.text.prefill import Rendered, render_prompt
from server.text.tokenizer import ByteTokenizer

jinja2 = pytest.importorskip("jinja2")

QWEN = (
    "{% for m in messages %}[{{ m.role }}]"
    "{% if m.role == 'assistant' %}<think>\n{{ (m.reasoning_content or '').strip() }}\n</think>\n\n{% endif %}"
    "{{ m.content }}[end]{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""Writes the last answer's thought, and an empty one where there is none."""
R1 = (
    "{% for m in messages %}[{{ m.role }}]{% set said = m.content %}"
    "{% if '</think>' in said %}{% set said = said.split('</think>')[-1] %}{% endif %}{{ said }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"
)
"""Takes thoughts out, and opens one in every answer."""
LLAMA = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
DEAF = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
THINKS = ChatFormat(think_start="<think>", think_end="</think>")


class Templated(ByteTokenizer):
    def __init__(self, template: str, chat_format: ChatFormat = THINKS) -> None:
        self._template = jinja2.Environment().from_string(template)
        self.chat_format = chat_format

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        template_kwargs: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        return str(self._template.render(messages=messages, **{"add_generation_prompt": True, **template_kwargs}))


def continued(template: str, said: str, reasoning: str = "", marks: ChatFormat = THINKS) -> Rendered:
    last = {"role": "assistant", "content": said, **({"reasoning_content": reasoning} if reasoning else {})}
    return render_prompt(Templated(template, marks), ({"role": "user", "content": "q"}, last), {}, (), "continued")


@pytest.mark.parametrize(
    ("template", "said", "reasoning", "text", "begins"),
    [
        (LLAMA, "So ", "", "So ", "content"),
        (LLAMA, " \n So", "", " \n So", "content"),
        (LLAMA, "", "", "", "before"),
        (LLAMA, "So", "hm", "<think>\nhm\n</think>\n\nSo", "content"),
        (QWEN, "So", "", "<think>\n\n</think>\n\nSo", "content"),
        (QWEN, "", "", "<think>\n\n</think>\n\n", "content"),
        (QWEN, "So", "hm", "<think>\nhm\n</think>\n\nSo", "content"),
        (QWEN, "<think>\nhm\n</think>\n\nSo", "", "<think>\nhm\n</think>\n\nSo", "content"),
        (QWEN, "", "hm, ", "<think>\nhm, ", "reasoning"),
        (QWEN, "<think>\nhm, ", "", "<think>\nhm, ", "reasoning"),
        (QWEN, "<think>\n", "", "<think>\n", "opened"),
        (R1, "So", "", "So", "content"),
        (R1, "", "", "", "before"),
        (R1, "<think>\nhm\n</think>\n\nSo", "", "<think>\nhm\n</think>\n\nSo", "content"),
        (R1, "So", "hm", "<think>\nhm\n</think>\n\nSo", "content"),
        (R1, "", "hm", "<think>\nhm", "reasoning"),
        (R1, "<think>", "", "<think>\n", "opened"),
        (R1, "a </think> b", "", "a </think> b", "content"),
        (
            "{% for m in messages %}[{{ m.role }}]<think>\n{{ m.content }}{% endfor %}",
            "hm",
            "",
            "<think>\nhm",
            "reasoning",
        ),
    ],
)
def test_what_the_model_goes_on_from(template: str, said: str, reasoning: str, text: str, begins: str) -> None:
    found = continued(template, said, reasoning)
    assert found.begins == begins
    assert found.text.rpartition("[assistant]")[2] == text
    assert found.text.count("[assistant]") == 1


def test_a_tag_is_text_where_the_model_has_no_reasoning() -> None:
    found = continued(LLAMA, "<think>x", marks=ChatFormat())
    assert (found.text, found.begins) == ("[user]q[end][assistant]<think>x", "content")


def test_what_cannot_be_continued() -> None:
    with pytest.raises(TemplateError, match="does not show the last message"):
        continued(DEAF, "So")
    with pytest.raises(TemplateError, match="marks no thoughts"):
        continued(LLAMA, "", "hm", ChatFormat())


def test_other_ends() -> None:
    messages = ({"role": "user", "content": "q"},)
    assert render_prompt(Templated(R1), messages, {}) == Rendered("[user]q[end][assistant]<think>\n", "opened")
    assert render_prompt(Templated(QWEN), messages, {}) == Rendered("[user]q[end][assistant]", "before")
    assert render_prompt(Templated(R1), messages, {}, (), "closed") == Rendered("[user]q[end]", "before")
