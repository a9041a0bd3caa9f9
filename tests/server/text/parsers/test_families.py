"""Each family's calls as mlx-lm's own parser reads them, cut at every place; and every parser of mlx-lm has its row."""

from __future__ import annotations

import importlib
import json
import pkgutil
from types import SimpleNamespace
from typing import Any

import pytest

from server.text.parsers import FAMILIES, THOUGHTS, format_of
from server.text.parsers.chat import ChatParser
from server.text.parsers.parts import ChatFormat
from tests.server.text.parsers.cuts import every_cut, parts_of, text_of

tool_parsers = pytest.importorskip("mlx_lm.tool_parsers")

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
_KEYED = "weather<{0}_key>city</{0}_key><{0}_value>Paris</{0}_value><{0}_key>days</{0}_key><{0}_value>2</{0}_value>"
_GLM = f"<tool_call>{_KEYED.format('arg')}</tool_call>"
_ARGUMENT = '<|open|>argument key="{}" type="{}"<|sep|>{}<|close|>argument<|sep|>'
CALLS = {
    "json_tools": '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n"
    "<parameter=days>\n2\n</parameter>\n</function></tool_call>",
    "glm47": _GLM,
    "laguna": _GLM,
    "longcat": f"<longcat_tool_call>{_KEYED.format('longcat_arg')}</longcat_tool_call>",
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
    '{"city": "Paris", "days": 2}<|tool_call_end|><|tool_calls_section_end|>',
    "kimi_k3": '<|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|>'
    + _ARGUMENT.format("city", "string", "Paris")
    + _ARGUMENT.format("days", "integer", "2")
    + "<|close|>call<|sep|><|close|>tools<|sep|>",
    "minimax_m2": '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Paris</parameter>\n'
    '<parameter name="days">2</parameter>\n</invoke>\n</minimax:tool_call>',
    "minicpm5": '<function name="weather"><param name="city">Paris</param><param name="days">2</param></function>',
    "mistral": '[TOOL_CALLS]weather[ARGS]{"city": "Paris", "days": 2}',
    "gemma4": '<|tool_call>call:weather{city:<|"|>Paris<|"|>,days:2}<tool_call|>',
    "function_gemma": "<start_function_call>call:weather{city:<escape>Paris<escape>,days:2}<end_function_call>",
    "pythonic": '<|tool_call_start|>[weather(city="Paris", days=2)]<|tool_call_end|>',
}


def wrapper(name: str | None, **changes: object) -> SimpleNamespace:
    """As mlx-lm's, for a model with that parser."""
    module: Any = SimpleNamespace(parse_tool_call=None, tool_call_start=None, tool_call_end=None)
    if name is not None:
        module = importlib.import_module(f"mlx_lm.tool_parsers.{name}")
    known = {
        "tool_parser": module.parse_tool_call,
        "tool_call_start": module.tool_call_start,
        "tool_call_end": module.tool_call_end,
        "think_start": "<think>",
        "think_end": "</think>",
        "get_vocab": dict,
    }
    return SimpleNamespace(**{**known, **changes})


@pytest.mark.parametrize("name", CALLS)
def test_a_call_cut_at_every_place(name):
    for cut in every_cut(f"<think>\nhm\n</think>\n\nI ask.\n{CALLS[name]}"):
        parts = parts_of(ChatParser(format_of(wrapper(name)), TOOLS), cut)
        assert (text_of(parts, "reasoning"), text_of(parts, "content")) == ("hm", "I ask.")
        ((call,),) = [part.calls for part in parts if part.calls]
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Paris", "days": 2})


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_cut_off_is_never_half_a_call(name):
    """It is whole but for its end, or it is text; no argument that is required is missing."""
    text = CALLS[name]
    for place in range(len(text)):
        parts = parts_of(ChatParser(format_of(wrapper(name)), TOOLS), [text[:place]])
        arguments = [json.loads(call.arguments) for part in parts for call in part.calls]
        assert all(each["city"] == "Paris" for each in arguments)
        assert arguments or text_of(parts, "content") == text[:place]


def test_the_models_own_id_is_kept_and_templates_get_ids_that_they_take():
    def id_of(name: str) -> str:
        parts = parts_of(ChatParser(format_of(wrapper(name)), TOOLS), [CALLS[name]])
        return next(call.id for part in parts for call in part.calls)

    assert id_of("kimi_k2") == "functions.weather:0"
    assert len(id_of("mistral")) == 9
    assert id_of("json_tools").startswith("call_")


def test_every_parser_of_mlx_lm_has_a_row():
    names = {module.name for module in pkgutil.iter_modules(tool_parsers.__path__)}
    assert names - FAMILIES.keys() == {"muse_spark"}  # its answers have headers, which are not told apart yet
    assert CALLS.keys() == FAMILIES.keys()


def test_a_model_without_marks():
    assert format_of(wrapper(None, think_start=None, think_end=None)) == ChatFormat()


@pytest.mark.parametrize("pair", THOUGHTS)
def test_thoughts_that_mlx_lm_does_not_look_for(pair):
    found = format_of(wrapper(None, think_start=None, think_end=None, get_vocab=lambda: dict.fromkeys(pair, 1)))
    assert (found.think_start, found.think_end) == pair
