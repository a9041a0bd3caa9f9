"""Each family's calls as its models write them, cut at every place; and written, read and equal, whatever they say."""

from __future__ import annotations

import json
import pkgutil
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.text.calls.form import CallForm
from server.text.calls.forms import FORMS, GENERIC, form_of
from server.text.calls.values import Number, read_exact
from server.text.calls.writer import write_calls
from server.text.parsers.chat import ChatParser
from server.text.parsers.formats import REASONING, format_of
from server.text.parsers.parts import ChatFormat
from tests.server.text.parsers.cuts import every_cut, parts_of, text_of

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
_KEYED = "weather<{0}_key>city</{0}_key><{0}_value>Paris</{0}_value><{0}_key>days</{0}_key><{0}_value>2</{0}_value>"
_GLM = f"<tool_call>{_KEYED.format('arg')}</tool_call>"
_ARGUMENT = '<|open|>argument key="{}" type="{}"<|sep|>{}<|close|>argument<|sep|>'
_OBJECT = '{"name": "weather", "arguments": {"city": "Paris", "days": 2}}'
_PARAMETERS = '{"name": "weather", "parameters": {"city": "Paris", "days": 2}}'
_CALLED = 'weather(city="Paris", days=2)'
_CODER = "<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>"
PARIS = '{"city": "Paris", "days": 2}'
CALLS = {
    "json_tools": f"<tool_call>\n{_OBJECT}\n</tool_call>",
    "qwen3_coder": f"<tool_call>\n{_CODER}\n</tool_call>",
    "seed_oss": f"<seed:tool_call>\n{_CODER}\n</seed:tool_call>".replace("=city>\nParis\n", "=city>Paris").replace(
        "=days>\n2\n", "=days>2"
    ),
    "glm47": _GLM,
    "laguna": _GLM,
    "longcat": f"<longcat_tool_call>{_KEYED.format('longcat_arg')}</longcat_tool_call>",
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
    f"{PARIS}<|tool_call_end|><|tool_calls_section_end|>",
    "kimi_k3": '<|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|>'
    + _ARGUMENT.format("city", "string", "Paris")
    + _ARGUMENT.format("days", "integer", "2")
    + "<|close|>call<|sep|><|close|>tools<|sep|>",
    "minimax_m2": '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Paris</parameter>\n'
    '<parameter name="days">2</parameter>\n</invoke>\n</minimax:tool_call>',
    "muse_spark": '<atem:function_calls>\n<atem:invoke name="weather">\n<atem:parameter name="city">Paris'
    '</atem:parameter>\n<atem:parameter name="days">2</atem:parameter>\n</atem:invoke>\n</atem:function_calls>',
    "minicpm5": '<function name="weather"><param name="city">Paris</param><param name="days">2</param></function>',
    "mistral": f"[TOOL_CALLS]weather[ARGS]{PARIS}",
    "mistral_list": f"[TOOL_CALLS] [{_OBJECT}]",
    "gemma4": '<|tool_call>call:weather{city:<|"|>Paris<|"|>,days:2}<tool_call|>',
    "function_gemma": "<start_function_call>call:weather{city:<escape>Paris<escape>,days:2}<end_function_call>",
    "pythonic": f"<|tool_call_start|>[{_CALLED}]<|tool_call_end|>",
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
    f"{PARIS}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
    f"{PARIS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v32": '<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n'
    '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
    "llama_pythonic": f"[{_CALLED}]",
    "llama_json": _PARAMETERS,
    "llama_tagged": f"<function=weather>{PARIS}</function>",
    "phi4": f"<|tool_call|>[{_OBJECT}]<|/tool_call|>",
    "command_a": '<|START_ACTION|>\n[{"tool_call_id": "0", "tool_name": "weather", "parameters": '
    f"{PARIS}}}]\n<|END_ACTION|>",
    "command_r": 'Action: ```json\n[\n    {\n        "tool_name": "weather",\n        "parameters": '
    f"{PARIS}\n    }}\n]```",
    "granite": f"<|tool_call|>[{_OBJECT}]",
    "tool_calls_list": f"<tool_calls>\n[{_OBJECT}]\n</tool_calls>",
    "nemotron": f"<TOOLCALL>[{_OBJECT}]</TOOLCALL>",
    "internlm": f"<|action_start|><|plugin|>\n{_PARAMETERS}\n<|action_end|>",
    "apertus": f'<|tools_prefix|>[{{"weather": {PARIS}}}]<|tools_suffix|>',
    "olmo": f"<function_calls>\n{_CALLED}\n</function_calls>",
}
VARIANTS = [
    # the calls, otherwise written, as other sources have them
    ("json_tools", f"<tool_call>{_OBJECT}</tool_call>"),
    ("json_tools", _OBJECT),
    ("json_tools", f"<tool_call>\n{_CODER}\n</tool_call>"),
    ("qwen3_coder", f"{_CODER}\n</tool_call>"),
    ("qwen3_coder", _CODER),
    ("qwen3_coder", _CODER.replace("\n", "")),
    ("qwen3_coder", f"<tool_call>\n{_CODER.replace('</function>', '')}</tool_call>"),
    ("qwen3_coder", f"<tool_call>\n{_OBJECT}\n</tool_call>"),
    ("qwen3_coder", f"<tool_call>{_CODER}"),
    ("glm47", _GLM.replace("><arg_", ">\n<arg_").replace("weather<", "weather\n<").replace("</tool", "\n</tool")),
    ("glm47", _GLM.removeprefix("<tool_call>")),
    ("glm47", _GLM.removesuffix("</tool_call>")),
    ("glm47", f"<tool_call>{_OBJECT}</tool_call>"),
    ("kimi_k2", CALLS["kimi_k2"].replace("functions.weather:0", "weather")),
    ("kimi_k2", CALLS["kimi_k2"].removeprefix("<|tool_calls_section_begin|>")),
    ("kimi_k3", '<|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|><|open|>json type="object"<|sep|>'
     f"{PARIS}<|close|>json<|sep|><|close|>call<|sep|><|close|>tools<|sep|>"),
    ("minimax_m2", CALLS["minimax_m2"].removeprefix("<minimax:tool_call>\n")),
    ("minimax_m2", CALLS["minimax_m2"].replace("\n", "")),
    ("minicpm5", CALLS["minicpm5"].replace(">Paris<", "><![CDATA[Paris]]><")),
    ("minicpm5", CALLS["minicpm5"].replace("><", ">\n<")),
    ("mistral", f"[TOOL_CALLS]weather[CALL_ID]bbc5b7ede[ARGS]{PARIS}"),
    ("mistral", f"[TOOL_CALLS]weather{PARIS}"),
    ("mistral", f"[TOOL_CALLS] [{_OBJECT}]"),
    ("mistral", f"weather[ARGS]{PARIS}"),
    ("mistral_list", f"[TOOL_CALLS]weather{PARIS}"),
    ("mistral_list", f"[TOOL_CALLS][{_OBJECT}]"),
    ("gemma4", '<|tool_call>call:weather{"city":"Paris","days":2}<tool_call|>'),
    ("gemma4", 'call:weather{city:<|"|>Paris<|"|>,days:2}<tool_call|>'),
    ("gemma4", "<|tool_call>call:weather{city:Paris,days:2}<tool_call|>"),
    ("pythonic", f"[{_CALLED}]"),
    ("pythonic", "<|tool_call_start|>[weather(city='Paris', days=2)]<|tool_call_end|>"),
    ("pythonic", f"<|tool_call_start|>{_CALLED}<|tool_call_end|>"),
    ("pythonic", "<|tool_call_start|>[weather(city=Paris, days=2)]<|tool_call_end|>"),
    ("deepseek", CALLS["deepseek_v31"]),
    ("deepseek_v31", CALLS["deepseek"]),
    ("deepseek", CALLS["deepseek"].removeprefix("<｜tool▁calls▁begin｜>")),
    ("deepseek", CALLS["deepseek"].replace("```json", "```")),
    ("deepseek_v32", CALLS["deepseek_v32"].removeprefix("<｜DSML｜function_calls>\n")),
    ("llama_json", f"<|python_tag|>{_PARAMETERS}"),
    ("llama_json", f"<|python_start|>{_PARAMETERS}<|python_end|>"),
    ("llama_json", _OBJECT),
    ("llama_json", f"[{_CALLED}]"),
    ("llama_json", f"<function=weather>{PARIS}</function>"),
    ("llama_pythonic", f"<|python_start|>[{_CALLED}]<|python_end|>"),
    ("llama_pythonic", _PARAMETERS),
    ("phi4", f"functools[{_OBJECT}]"),
    ("phi4", f"<|tool_call|>{_OBJECT}<|/tool_call|>"),
    ("command_a", CALLS["command_a"].replace("\n", "")),
    ("granite", f"<tool_call>[{_OBJECT}]</tool_call>"),
    ("tool_calls_list", f"<tool_calls>\n{_OBJECT}\n</tool_calls>"),
    ("generic", CALLS["json_tools"]),
    ("generic", _OBJECT),
    ("generic", f"```json\n{_OBJECT}\n```"),
]  # fmt: skip


def format_named(name: str) -> ChatFormat:
    form = GENERIC if name == "generic" else FORMS[name]
    return ChatFormat(think_start="<think>", think_end="</think>", calls=form)


def read(form: CallForm, text: str, tools: Any = TOOLS, **options: Any) -> list[tuple[str, Any]]:
    """(name, arguments) of the calls in a text that is nothing else."""
    parser = ChatParser(ChatFormat(calls=form), tools, begins="content", **options)
    parts = [*parser.feed(text), *parser.flush()]
    assert text_of(parts, "content").strip() == "", text
    return [(call.name, read_exact(call.arguments)) for part in parts for call in part.calls]


@pytest.mark.parametrize("name", CALLS)
def test_a_call_cut_at_every_place(name: str) -> None:
    said = "" if name in ("llama_json", "llama_pythonic") else "I ask."
    for cut in every_cut(f"<think>\nhm\n</think>\n\n{said}\n{CALLS[name]}"):
        parts = parts_of(ChatParser(format_named(name), TOOLS), cut)
        assert (text_of(parts, "reasoning"), text_of(parts, "content")) == ("hm", said)
        ((call,),) = [part.calls for part in parts if part.calls]
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Paris", "days": 2})


@pytest.mark.parametrize(("name", "text"), VARIANTS)
def test_where_there_is_one_sensible_meaning(name: str, text: str) -> None:
    for cut in every_cut(text):
        parts = parts_of(ChatParser(format_named(name), TOOLS, begins="content"), cut)
        assert text_of(parts, "content") == ""
        ((call,),) = [part.calls for part in parts if part.calls]
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Paris", "days": 2})


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_cut_off_is_never_half_a_call(name: str) -> None:
    """It is whole but for its end, or it is text; no argument that is required is missing."""
    text = CALLS[name]
    for place in range(len(text)):
        parser = ChatParser(format_named(name), TOOLS, begins="content")
        parts = [*parser.feed(text[:place]), *parser.flush(is_cut=True)]
        arguments = [json.loads(call.arguments) for part in parts for call in part.calls]
        assert all(each == {"city": "Paris", "days": 2} for each in arguments)
        assert arguments or text_of(parts, "content") == text[:place]


@pytest.mark.parametrize("name", CALLS)
def test_a_tool_that_was_not_offered_is_no_call(name: str) -> None:
    text = CALLS[name].replace("weather", "launch")
    for cut in ([text], list(text)):
        parts = parts_of(ChatParser(format_named(name), TOOLS, begins="content"), cut)
        assert text_of(parts, "content") == text
        assert not any(part.calls for part in parts)


@pytest.mark.parametrize("name", CALLS)
def test_several_calls(name: str) -> None:
    form = FORMS[name]
    calls = [("weather", {"city": "Paris"}), ("weather", {"city": "Oslo", "days": Number("3")})]
    assert read(form, write_calls(form, calls)) == calls
    sections = "\n".join(write_calls(form, [call]) for call in calls)
    assert read(form, sections) == calls


# --- written, read and equal

NUMBERS = st.one_of(
    st.integers(-(10**40), 10**40).map(str),
    st.decimals(allow_nan=False, allow_infinity=False, places=8).map("{:f}".format),
    st.sampled_from(["0", "-0", "1e400", "1234567890123456789", "0.10", "1E-7", "-1.5e+3"]),
).map(Number)
TRICKY = st.sampled_from(
    [
        "NULL", "null", "None", "true", "0x10", "007", "1e5", "[1, 2", "{", "}", "'", '"', '"quoted"', "a\\nb", "\\",
        "\t", " ", "\n", "\n\n", "<|im_end|>", "[ARGS]", "[TOOL_CALLS]", "<think>", "</think>", "```", "```json\n```",
        "<tool_call>", "</tool_call>", "</parameter>", "</function>", "<parameter=x>", "</arg_value>", "<arg_key>",
        "</invoke>", "</param>", "<|tool_call_end|>", "functions.weather:0", "&lt;", "é", "中", "\U0001f600", ", b=2",
        "]", ")", "<function=weather>", "call:weather{",
    ]
)  # fmt: skip
ANY_TEXT = st.lists(TRICKY | st.text(max_size=6), max_size=5).map("".join)
SCALARS = st.none() | st.booleans() | NUMBERS | ANY_TEXT
NESTED = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_", min_size=1), inner, max_size=3)
)
KINDS: dict[str, tuple[dict[str, Any], st.SearchStrategy[Any]]] = {
    "text": ({"type": "string"}, ANY_TEXT),
    "number": ({"type": "number"}, NUMBERS),
    "flag": ({"type": "boolean"}, st.booleans()),
    "list": ({"type": "array"}, st.lists(NESTED, max_size=3)),
    "object": ({"type": "object"}, st.dictionaries(st.text("abc_", min_size=1), NESTED, max_size=3)),
    "maybe": ({"type": ["integer", "null"]}, st.none() | st.integers().map(str).map(Number)),
}


@st.composite
def called(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[tuple[str, dict[str, Any]]]]:
    """Tools, and calls of them with all arguments."""
    tools, calls = [], []
    for place in range(draw(st.integers(1, 2))):
        kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), max_size=4, unique=True))
        schema = {"type": "object", "properties": {kind: KINDS[kind][0] for kind in kinds}, "required": kinds}
        tools.append({"type": "function", "function": {"name": f"tool_{place}", "parameters": schema}})
        calls.append((f"tool_{place}", {kind: draw(KINDS[kind][1]) for kind in kinds}))
    return tools, calls


def closes_itself(form: CallForm, calls: list[tuple[str, dict[str, Any]]]) -> bool:
    """Whether a text has in it what the form itself would take for its end: no reader can tell the two apart."""
    marks = [form.quote] if form.quote else []
    if form.pair is not None:
        marks += [form.pair.tail.strip(), form.pair.head.partition("{")[0], "<![CDATA["]
        if form.mid == "{nl}":
            marks.append(form.pair.head.rpartition("}")[2])
    texts = json.dumps([arguments for _, arguments in calls], ensure_ascii=False)
    return any(json.dumps(mark, ensure_ascii=False)[1:-1] in texts for mark in marks)


@pytest.mark.parametrize("name", [*FORMS, "generic"])
@given(given_calls=called())
@settings(max_examples=30)
def test_what_is_written_is_read(name: str, given_calls: Any) -> None:
    tools, calls = given_calls
    form = GENERIC if name == "generic" else FORMS[name]
    if closes_itself(form, calls):
        return
    text = write_calls(form, calls)
    assert read(form, text, tools) == calls
    parser = ChatParser(ChatFormat(calls=form), tools, begins="content")
    parts = [part for character in text for part in parser.feed(character)] + parser.flush()
    assert [(call.name, read_exact(call.arguments)) for part in parts for call in part.calls] == calls
    assert read(form, text, tools, is_held=True) == calls


PAIRS = [name for name, form in FORMS.items() if form.pair is not None]


@pytest.mark.parametrize("name", PAIRS)
def test_tags_of_the_form_itself_in_a_text(name: str) -> None:
    """A closing tag counts only where the call is whole with it."""
    form = FORMS[name]
    schema = {"type": "object", "properties": {"path": {"type": "string"}, "said": {"type": "string"}}}
    tools = [
        {
            "type": "function",
            "function": {"name": "write", "parameters": {**schema, "required": [*schema["properties"]]}},
        }
    ]
    assert form.pair is not None
    nested = write_calls(form, [("write", {"path": "b", "said": "c"})])
    texts = [
        form.pair.tail,
        f"{form.pair.tail} and on",
        form.end,
        f"a {form.end} b",
        form.tail,
        nested,
        f"{nested}\nso",
    ]
    for said in filter(None, texts):
        calls = [("write", {"path": "a.md", "said": said.strip() if form.pair.cdata else said})]
        assert read(form, write_calls(form, calls), tools) == calls, said
        first = [("write", {"path": said.strip() if form.pair.cdata else said, "said": "x"})]
        assert read(form, write_calls(form, first), tools) == first, said


@pytest.mark.parametrize("name", PAIRS)
def test_an_opening_tag_in_a_text_is_not_waited_for_beyond_the_end(name: str) -> None:
    form = FORMS[name]
    assert form.pair is not None
    head = form.pair.head.replace("{key}", "x").replace("{flag}", form.pair.text_flag).replace("{nl}", "")
    calls = [("weather", {"city": f"see {head} there", "days": Number("2")})]
    assert read(form, write_calls(form, calls)) == calls


# --- which form it is


def wrapper(name: str | None, **changes: object) -> SimpleNamespace:
    """As mlx-lm's, for a model with that parser."""
    parser = SimpleNamespace(__module__=f"mlx_lm.tool_parsers.{name}") if name else None
    known = {
        "tool_parser": parser,
        "think_start": "<think>",
        "think_end": "</think>",
        "get_vocab": dict,
    }
    return SimpleNamespace(**{**known, **changes})


def test_the_models_own_id_is_kept_and_templates_get_ids_that_they_take() -> None:
    def id_of(name: str, text: str) -> str:
        parts = parts_of(ChatParser(format_named(name), TOOLS), [text])
        return next(call.id for part in parts for call in part.calls)

    assert id_of("kimi_k2", CALLS["kimi_k2"]) == "functions.weather:0"
    assert id_of("mistral", f"[TOOL_CALLS]weather[CALL_ID]bbc5b7ede[ARGS]{PARIS}") == "bbc5b7ede"
    assert len(id_of("mistral", CALLS["mistral"])) == 9
    assert id_of("json_tools", CALLS["json_tools"]).startswith("call_")


def test_every_parser_of_mlx_lm_has_a_row() -> None:
    tool_parsers = pytest.importorskip("mlx_lm.tool_parsers")
    names = {module.name for module in pkgutil.iter_modules(tool_parsers.__path__)}
    assert names <= FORMS.keys()
    assert CALLS.keys() == FORMS.keys()


def test_a_model_without_marks() -> None:
    assert format_of(wrapper(None, think_start=None, think_end=None)) == ChatFormat()


def test_a_template_that_knows_no_calls_gets_a_form_that_is_told() -> None:
    found = format_of(wrapper(None, has_chat_template=True, chat_template="{{ messages }}"))
    assert (found.calls, found.tells_tools) == (GENERIC, "prompt")


@pytest.mark.parametrize("pair", REASONING)
def test_reasoning_that_mlx_lm_does_not_look_for(pair: tuple[str, str]) -> None:
    found = format_of(wrapper(None, think_start=None, think_end=None, get_vocab=lambda: dict.fromkeys(pair, 1)))
    assert (found.think_start, found.think_end) == pair


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("<tool_call>\n{{ tool_call.name }}", "json_tools"),
        ("<tool_call>\n<function=x>\n<parameter=y>", "qwen3_coder"),
        ("<seed:tool_call>\n<function=x>", "seed_oss"),
        ('Respond in the format {"name": function name, "parameters": {}}. ipython', "llama_json"),
        ('"parameters": <|start_header_id|>ipython [func_name1(params_name1=params_value1)]', "llama_pythonic"),
        ("<|tool|>{{ tools }}<|/tool|>", "phi4"),
        ("<|START_ACTION|>[", "command_a"),
        ('Action: ```json [ {"tool_name": ', "command_r"),
        ("<|tool_call|>[", "granite"),
        ("<function=example>{}</function>", "llama_tagged"),
        ("[TOOL_CALLS]", "mistral_list"),
        ("[TOOL_CALLS]x[ARGS]", "mistral"),
        ("<｜tool▁call▁begin｜>function\n```json", "deepseek"),
        ("{{ messages }}", None),
    ],
)
def test_the_form_by_the_template(template: str, name: str | None) -> None:
    found = form_of(template, ())
    assert (found and found.name) == name


def test_the_form_by_the_tokens() -> None:
    assert form_of("", {"<|tool_call_start|>", "<|tool_call_end|>"}) == FORMS["pythonic"]
    assert form_of("", FORMS["deepseek_v31"].vocabulary) == FORMS["deepseek_v31"]
    assert form_of("", {"[ARGS]"}, "mistral") == FORMS["mistral"]
    assert form_of("", (), "mistral") == FORMS["mistral_list"]


def test_the_table_in_the_documentation_has_every_form() -> None:
    table = (Path(__file__).parents[4] / "docs" / "calls.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(rows) == sorted([*FORMS, GENERIC.name, "harmony"])
