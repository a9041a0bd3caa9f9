"""What real kinds of templates take is found out, and then they take everything."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from server.text.conversation import CallShape, Traits
from server.text.template_traits import find_traits
from server.text.tokenizer import load_tokenizer
from tests.tiny_tokenizer import write_harmony_tokenizer, write_tiny_tokenizer

CALL = {"id": "call_0", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
SAID = {"role": "assistant", "content": "I ask.", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_0", "content": "rain"}
HI = {"role": "user", "content": "hi"}

LOOP = "{% for m in messages %}LINE{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
LINE = "{{ m.role }}:{{ m.content }}\n"
CALLS = "{% for c in m.tool_calls or [] %}({{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}){% endfor %}"
TEXT_CALLS = CALLS.replace("{{ c.function.arguments | tojson }}", "{{ '' + c.function.arguments }}")
REFUSE = "{{ raise_exception('no') }}"
# ruff: noqa: E501
TEMPLATES: dict[str, tuple[str, Traits]] = {
    "plain": (LOOP.replace("LINE", LINE + CALLS), Traits()),
    "calls as text": (LOOP.replace("LINE", LINE + TEXT_CALLS), Traits(calls=CallShape(as_text=True))),
    "calls where no content is": (
        LOOP.replace("LINE", "{% if m.content %}" + LINE + "{% else %}" + CALLS + "{% endif %}"),
        Traits(calls=CallShape("empty")),
    ),
    "calls where content is none": (
        LOOP.replace("LINE", "{% if m.content is none %}" + CALLS + "{% else %}{{ '' + m.content }}{% endif %}"),
        Traits(calls=CallShape("none")),
    ),
    "no calls": (LOOP.replace("LINE", LINE), Traits(calls=None)),
    "neither calls nor results": (
        LOOP.replace("LINE", "{% if m.role == 'tool' %}" + REFUSE + "{% endif %}" + LINE),
        Traits(calls=None, results=False),
    ),
    "results that are left out": (
        LOOP.replace("LINE", "{% if m.role != 'tool' %}" + LINE + CALLS + "{% endif %}"), Traits(results=False),
    ),
    "one call": (LOOP.replace("LINE", LINE + CALLS.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")), Traits(one_call=True)),
    "ids of nine characters": (
        LOOP.replace(
            "LINE",
            "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}" + REFUSE + "{% endif %}{% endfor %}"
            "{% if m.role == 'tool' and m.tool_call_id | length != 9 %}" + REFUSE + "{% endif %}" + LINE + CALLS,
        ),
        Traits(nine_characters=True),
    ),
    "the system first": (
        LOOP.replace("LINE", "{% if m.role == 'system' and not loop.first %}" + REFUSE + "{% endif %}" + LINE + CALLS),
        Traits(system="first"),
    ),
    "no system": (
        LOOP.replace("LINE", "{% if m.role == 'system' %}" + REFUSE + "{% endif %}" + LINE + CALLS), Traits(system="nowhere"),
    ),
    "a system that is left out": (
        LOOP.replace("LINE", "{% if m.role != 'system' %}" + LINE + CALLS + "{% endif %}"), Traits(system="nowhere"),
    ),
    "turns that alternate": (
        "{% set s = namespace(n=0) %}"
        + LOOP.replace(
            "LINE",
            "{% if m.role in ('user', 'assistant') and not m.tool_calls %}{% if (m.role == 'user') != (s.n % 2 == 0) %}"
            + REFUSE + "{% endif %}{% set s.n = s.n + 1 %}{% endif %}" + LINE + CALLS,
        ),
        Traits(alternates=True, user_first=True, answers_results=True),
    ),
    "a user": (
        "{% if 'user' not in messages | map(attribute='role') %}" + REFUSE + "{% endif %}" + LOOP.replace("LINE", LINE + CALLS),
        Traits(needs_user=True),
    ),
    "another key of thoughts": (
        LOOP.replace("LINE", "{% if m.reasoning %}[{{ m.reasoning }}]{% endif %}" + LINE + CALLS), Traits(reasoning_key="reasoning"),
    ),
    "nothing": (REFUSE, Traits()),
}  # fmt: skip


pytestmark = pytest.mark.mlx


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_traits_of_a_template(tmp_path: Path, name: str) -> None:
    template, traits = TEMPLATES[name]
    tokenizer = load_tokenizer(write_tiny_tokenizer(tmp_path / "model", chat_template=template))
    assert tokenizer._renderer._traits == traits  # type: ignore[attr-defined]


CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": role, "content": f"{role}{place}"} for place, role in enumerate(roles.split())]
    for roles in (
        "user", "system user", "system system user", "system user assistant system user", "user user", "assistant user",
        "system", "user assistant assistant user", "system user assistant user system",
    )
] + [[HI, SAID, RESULT], [HI, SAID, RESULT, HI], [HI, {**SAID, "tool_calls": [CALL, {**CALL, "id": "call_1"}]}, RESULT]]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "nothing"])
def test_every_conversation_is_rendered_and_no_word_of_it_is_lost(tmp_path: Path, name: str) -> None:
    tokenizer = load_tokenizer(write_tiny_tokenizer(tmp_path / "model", chat_template=TEMPLATES[name][0]))
    for messages in CONVERSATIONS:
        text = tokenizer.render_chat(messages, {})
        for message in messages:
            assert message["content"] in text, text
            assert text.count("weather") >= len(message.get("tool_calls") or ()), text


def test_what_was_changed_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = load_tokenizer(write_tiny_tokenizer(tmp_path / "model", chat_template=TEMPLATES["no system"][0]))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            tokenizer.render_chat([{"role": "system", "content": "Be brief."}, HI], {})
    (record,) = caplog.records
    assert record.getMessage() == (
        "the chat template takes no system message: its text begins the first message of the user"
    )


def test_a_template_that_refuses_everything_is_left_alone() -> None:
    def refuse(messages: object) -> str:
        raise ValueError("no")

    assert find_traits(refuse) == Traits()


def test_several_calls_of_gpt_oss(tmp_path: Path) -> None:
    """Its own template writes the first, and finds thoughts under a name of its own."""
    folder = write_harmony_tokenizer(tmp_path)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.render_chat([HI], {})


MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set loop_messages = messages[1:] %}"
    "{% else %}{% set loop_messages = messages %}{% endif %}{% set ns = namespace(index=0) %}"
    "{% for m in loop_messages %}{% if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
    "{% if (m.role == 'user') != (ns.index % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set ns.index = ns.index + 1 %}{% endif %}{% endfor %}"
    "{% for m in loop_messages %}{% if m.role == 'user' %}[INST]{% if loop.last and s is defined %}{{ s }}\n\n{% endif %}"
    "{{ m.content }}[/INST]{% elif m.tool_calls %}[TOOL_CALLS]{% for c in m.tool_calls %}{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}{{ c.id }}{% if c.id | length != 9 %}{{ raise_exception('nine') }}{% endif %}{% endfor %}"
    "{% elif m.role == 'assistant' %}{{ m.content }}</s>{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}"
    "[/TOOL_RESULTS]{% else %}{{ raise_exception('role') }}{% endif %}{% endfor %}"
)
"""Alternation that calls take no part in, text beside calls left out, and the system's words with the last user's."""
DONE = {"role": "assistant", "content": "It is sunny."}
THANKS = {"role": "user", "content": "Thanks."}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    "messages",
    [
        [HI, SAID, RESULT, DONE, THANKS],
        [SYSTEM, HI, SAID, RESULT],
        [SYSTEM, HI, SAID, RESULT, SAID, RESULT, DONE, THANKS],
        [SYSTEM, HI, SAID, RESULT, THANKS],
        [HI, SAID, THANKS],
        [HI, DONE, SAID, RESULT],
        [HI, {**SAID, "content": None}, RESULT, DONE, THANKS, SAID, RESULT, DONE],
        [HI, HI, SAID, RESULT, DONE, DONE, THANKS],
    ],
)
def test_an_agents_history_and_a_template_of_mistral(tmp_path: Path, messages: list[dict[str, Any]]) -> None:
    tokenizer = load_tokenizer(write_tiny_tokenizer(tmp_path / "model", chat_template=MISTRAL))
    text = tokenizer.render_chat(messages, {})
    for message in messages:
        assert (message["content"] or "") in text
    assert text.count("[TOOL_CALLS]") == sum("tool_calls" in message for message in messages)


@pytest.mark.parametrize("arguments", ["notjson", "null", "[]", "", None, [1], {"city": "Köln"}])
def test_arguments_that_are_no_object(tmp_path: Path, arguments: object) -> None:
    template = LOOP.replace(
        "LINE",
        LINE + "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% for k, v in c.function.arguments | items %}"
        "({{ k }}={{ v }}){% endfor %}{% endfor %}",
    )
    tokenizer = load_tokenizer(write_tiny_tokenizer(tmp_path / "model", chat_template=template))
    call = {**CALL, "function": {"name": "weather", "arguments": arguments}}
    text = tokenizer.render_chat([HI, {**SAID, "tool_calls": [call]}, RESULT], {})
    assert "weather" in text
    assert arguments != "notjson" or "notjson" in text
