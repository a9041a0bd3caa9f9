"""DeepSeek's calls, both ways, cut at every place; and a tiny model with R1's tokens and template, end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_backend.api.interface import EngineConfig
from mlx_backend.factory import create_engine
from server.app import create_app
from server.config import Config
from server.service.registry import ModelRegistry, ServedModel
from server.text.calls.forms import FORMS
from server.text.calls.json_forms import DEEPSEEK_TOKENS
from server.text.chat_template import render_text
from server.text.parsers.chat import ChatParser
from server.text.parsers.formats import format_of
from server.text.parsers.parts import ChatFormat
from server.text.tokenizer import load_tokenizer
from tests.engine_client import until
from tests.server.text.calls.test_families import TOOLS, wrapper
from tests.server.text.parsers.cuts import every_cut, parts_of, text_of
from tests.tiny_models import write_model
from tests.tiny_tokenizer import DEEPSEEK_TEMPLATE, write_deepseek_tokenizer

VOCABULARY = dict.fromkeys(DEEPSEEK_TOKENS, 1)
START, END, CALL, SEP, CALL_END = (
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
)  # fmt: skip
PARIS = '{"city": "Paris", "days": 2}'
FENCED = f"{CALL}function{SEP}weather\n```json\n{PARIS}\n```{CALL_END}"
BARE = f"{CALL}weather{SEP}{PARIS}{CALL_END}"
INVOKED = (
    '<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n</｜DSML｜invoke>'
)
HI = [{"role": "user", "content": "hi"}]


def format_with(template: str) -> ChatFormat:
    return format_of(wrapper(None, get_vocab=lambda: VOCABULARY, chat_template=template))


@pytest.mark.parametrize("calls", [FENCED, BARE, f"{FENCED}\n{FENCED}", BARE + BARE])
def test_calls_cut_at_every_place(calls: str) -> None:
    for cut in every_cut(f"<think>\nhm\n</think>\n\nI ask.\n{START}{calls}{END}"):
        parts = parts_of(ChatParser(format_with(DEEPSEEK_TEMPLATE), TOOLS), cut)
        assert (text_of(parts, "reasoning"), text_of(parts, "content")) == ("hm", "I ask.")
        (found,) = [part.calls for part in parts if part.calls]
        assert len(found) == calls.count(CALL)
        assert {(call.name, json.loads(call.arguments)["city"]) for call in found} == {("weather", "Paris")}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ('true">5', "5"),
        ('true">', ""),
        ('true"> a\n', " a\n"),
        ('false">5', 5),
        ('false">[1]', [1]),
        ('true">null', "null"),
    ],
)
def test_a_parameter_says_what_it_is(written: str, value: object) -> None:
    parameter = f'<｜DSML｜parameter name="a" string="{written}</｜DSML｜parameter>'
    invoked = f'<｜DSML｜invoke name="weather">\n{parameter}\n</｜DSML｜invoke>'
    text = f"<｜DSML｜function_calls>\n{invoked}\n</｜DSML｜function_calls>"
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    parts = parts_of(ChatParser(ChatFormat(calls=FORMS["deepseek_v32"]), tools), [text])
    assert [json.loads(call.arguments) for part in parts for call in part.calls] == [{"a": value}]


@pytest.mark.parametrize("body", ["", "weather", BARE[:-40], BARE.replace(PARIS, "Paris"), BARE.replace(PARIS, "[]")])
def test_what_is_no_call_is_content(body: str) -> None:
    text = f"{START}{body}{END}"
    parts = parts_of(ChatParser(format_with(""), TOOLS), [text])
    assert text_of(parts, "content") == text


def test_which_way_is_the_templates_to_say() -> None:
    assert format_with(DEEPSEEK_TEMPLATE).calls == FORMS["deepseek"]
    assert format_with("{{ messages }}").calls == FORMS["deepseek_v31"]
    assert format_with("{{ messages }}").tells_tools == "prompt"
    assert format_with("{% for tool in tools %}").tells_tools == "template"


# --- end to end

pytestmark = pytest.mark.mlx


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_deepseek_tokenizer(tmp_path_factory.mktemp("models") / "r1")
    names = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return write_model(folder, "deepseek_v3", vocab_size=1 + names[-1]["id"])


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_tools_are_told_to_the_model(folder: Path, system: str | None) -> None:
    """Which the template would leave out without a word."""
    messages = [{"role": "system", "content": system}, *HI] if system else HI
    text = render_text(load_tokenizer(folder), messages, {}, TOOLS)
    assert text.startswith(system or "You can call functions.")
    assert json.dumps(TOOLS[0]["function"]) in text
    assert f"{START}{CALL}function{SEP}NAME\n```json\nARGUMENTS\n```" in text
    assert text.endswith("<｜User｜>hi<｜Assistant｜>")
    assert render_text(load_tokenizer(folder), HI, {}) == "<｜User｜>hi<｜Assistant｜>"


@pytest.mark.parametrize("content", ["", "I ask."])
def test_calls_of_earlier_turns_are_not_lost(folder: Path, content: str) -> None:
    """R1's template writes calls only where there is no content, and wants their arguments as a text."""
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
    said = {"role": "assistant", "content": content, "tool_calls": [call]}
    result = {"role": "tool", "content": "rain", "tool_call_id": "c"}
    before = f"<｜Assistant｜>{content}<｜end｜>" if content else ""
    written = FENCED.replace(PARIS, '{"city": "Köln"}')
    assert render_text(load_tokenizer(folder), [*HI, said, result], {}) == (
        f"<｜User｜>hi{before}<｜Assistant｜>{START}{written}{END}<result>rain</result><｜Assistant｜>"
    )


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_the_newest_has_a_template_of_mlx_lms(tmp_path: Path, system: list[dict[str, Any]]) -> None:
    folder = write_deepseek_tokenizer(tmp_path / "v32")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template_type"] = "deepseek_v32"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.chat_format.calls == FORMS["deepseek_v32"]
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris", "days": 2}}}
    said = {"role": "assistant", "content": "I ask.", "tool_calls": [call]}
    text = tokenizer.render_chat(
        [*system, *HI, said, {"role": "tool", "content": "rain", "tool_call_id": "c"}], {}, TOOLS
    )
    assert INVOKED.replace("</｜DSML｜parameter>\n</", "</｜DSML｜parameter>\n</") in text
    assert json.dumps(TOOLS[0]["function"]) in text
    assert ("Be brief." in text) == bool(system)
    assert "<result>rain</result>" in text


async def test_a_call_that_is_demanded_is_made(folder: Path) -> None:
    model = ServedModel("r1", create_engine(EngineConfig(model_path=str(folder))), lambda: load_tokenizer(folder))
    model.start()
    transport = httpx.ASGITransport(create_app(Config(), ModelRegistry([model])))
    city = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
    tools = [
        {"type": "function", "function": {"name": "weather", "parameters": {**city, "additionalProperties": False}}}
    ]
    try:
        await until(lambda: model.health().status == "ok")
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            for seed in range(4):
                body = {"messages": HI, "tools": tools, "tool_choice": "required", "temperature": 1, "seed": seed}
                answer = await client.post("/v1/chat/completions", json={**body, "max_tokens": 1000})
                assert answer.status_code == 200, answer.text
                (choice,) = answer.json()["choices"]
                assert choice["finish_reason"] == "tool_calls"
                assert choice["message"]["content"] is None
                for call in choice["message"]["tool_calls"]:
                    assert json.loads(call["function"]["arguments"])["city"] in ("Rome", "Oslo")
    finally:
        model.close()
