"""TEMPLATE of a Modelfile in Jinja: the same text as Ollama makes of it, turn by turn, or a reason why not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from server.importing.go_template import to_jinja
from server.importing.problems import CannotImport

CHATML = (
    "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ if .Prompt }}<|im_start|>user\n"
    "{{ .Prompt }}<|im_end|>\n{{ end }}<|im_start|>assistant\n{{ .Response }}<|im_end|>\n"
)
LLAMA3 = (
    "{{ if .System }}<|start_header_id|>system<|end_header_id|>\n\n{{ .System }}<|eot_id|>{{ end }}{{ if .Prompt }}"
    "<|start_header_id|>user<|end_header_id|>\n\n{{ .Prompt }}<|eot_id|>{{ end }}<|start_header_id|>assistant"
    "<|end_header_id|>\n\n{{ .Response }}<|eot_id|>"
)
MISTRAL = "[INST] {{ if .System }}{{ .System }} {{ end }}{{ .Prompt }} [/INST]"
ALPACA = "{{- if .System }}\n{{ .System }}\n{{ end }}\n### Instruction:\n{{ .Prompt }}\n\n### Response:\n"
DEEPSEEK = (
    "{{ if .System }}{{ .System }}{{ end }}<｜User｜>{{ .Prompt }}<｜Assistant｜>{{ .Response }}<｜end▁of▁sentence｜>"
)
ENVIRONMENT = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
FIRST = [{"role": "system", "content": "S"}, {"role": "user", "content": "P"}]
NEXT = [*FIRST, {"role": "assistant", "content": "R"}, {"role": "user", "content": "Q"}]


def render(template: str, messages: list[dict[str, str]], *, begins_with_bos: bool = False, **more: Any) -> str:
    written = ENVIRONMENT.from_string(to_jinja(template, begins_with_bos=begins_with_bos))
    return written.render(messages=messages, add_generation_prompt=True, bos_token="<s>", **more)


@pytest.mark.parametrize(
    ("template", "first", "following"),
    [
        (
            CHATML,
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nP<|im_end|>\n<|im_start|>assistant\n",
            "R<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            LLAMA3,
            "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
            "P<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            "R<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|><|start_header_id|>assistant"
            "<|end_header_id|>\n\n",
        ),
        (MISTRAL, "[INST] S P [/INST]", "R[INST] Q [/INST]"),
        (
            ALPACA,
            "\nS\n\n### Instruction:\nP\n\n### Response:\n",
            "R\n### Instruction:\nQ\n\n### Response:\n",
        ),
        (DEEPSEEK, "S<｜User｜>P<｜Assistant｜>", "R<｜end▁of▁sentence｜><｜User｜>Q<｜Assistant｜>"),
        ("{{- .Prompt -}} \n", "P", "RQ"),
        ("{{ if .System }}a{{ else }}b{{ end }}{{/* no text */}}{{.Prompt}}", "aP", "RbQ"),
        ('{{ .Prompt }}{% "\\{{"\'', 'P{% "\\', None),
    ],
)
def test_turns_are_what_ollama_makes_of_them(template: str, first: str, following: str | None) -> None:
    if following is None:
        with pytest.raises(CannotImport, match="is not closed"):
            to_jinja(template, begins_with_bos=False)
        return
    assert render(template, FIRST) == first
    assert render(template, NEXT) == first + following
    assert render(template, FIRST, begins_with_bos=True) == "<s>" + first


def test_a_system_prompt_later_on_begins_a_turn() -> None:
    messages = [{"role": "user", "content": "P"}, {"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    assert render(DEEPSEEK, messages) == "<｜User｜>P<｜Assistant｜><｜end▁of▁sentence｜>S<｜User｜>Q<｜Assistant｜>"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ .System }}", "it has no .Prompt"),
        ("{{ range .Messages }}{{ .Content }}{{ end }}", "it says {{ range .Messages }}"),
        ("{{ if and .System .First }}x{{ end }}{{ .Prompt }}", "it says {{ if and .System .First }}"),
        ("{{ if .Prompt }}{{ .Prompt }}", "a condition has no end"),
        ("{{ .Prompt }}{{ end }}", "it says {{ end }}"),
        ("{{ .Prompt }}{{ else }}", "it says {{ else }}"),
        ("{{ if .System }}{{ .Response }}{{ end }}{{ .Prompt }}", "its .Response stands in a condition"),
        ("{{ if .System }}" * 60 + "{{ .Prompt }}", "it says {{ if .System }}"),
        ("{{ .Prompt }}" * 10_000, "it has 130000 characters"),
        ("{{ .Prompt", "a {{ is not closed"),
    ],
)
def test_what_is_not_converted_is_named(template: str, says: str) -> None:
    with pytest.raises(CannotImport) as caught:
        to_jinja(template, begins_with_bos=False)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=30)
@given(st.text(), st.text(), st.text())
def test_no_text_is_read_as_a_template(before: str, after: str, content: str) -> None:
    texts = [text.replace("{{", "{ {") for text in (before, after)]
    texts = [text.rstrip("{").lstrip("}") for text in texts]
    found = render(f"{texts[0]}{{{{ .Prompt }}}}{texts[1]}", [{"role": "user", "content": content}])
    assert found == f"{texts[0]}{content}{texts[1]}"
