"""How models slip: what was meant is read, and nothing is made of what cannot be told."""

from __future__ import annotations

# ruff: noqa: E501
import json
from typing import Any

import pytest

from server.text.calls.forms import FORMS
from server.text.parsers.chat import ChatParser, build_parser
from server.text.parsers.parts import ChatFormat
from tests.server.text.parsers.cuts import every_cut, parts_of, text_of


def tool(name: str, *, required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


STRING = {"type": "string"}
TOOLS = [
    tool("weather", required=("city",), city=STRING, days={"type": "integer"}),
    tool("write", required=("path", "content"), path=STRING, content=STRING),
    tool("now"),
]
WRITE = "<tool_call>\n<function=write>\n<parameter=path>\n{}<parameter=content>\nhello\n</parameter>\n</function>\n</tool_call>"
GLM = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>{}</arg_value>\n"
KIMI = "<|tool_call_begin|>{}<|tool_call_argument_begin|>{}<|tool_call_end|>"
SECTION = "<|tool_calls_section_begin|>{}<|tool_calls_section_end|>"
HELLO = ("write", {"path": "a.txt", "content": "hello"})
NOW: tuple[str, dict[str, Any]] = ("now", {})


def format_of(form: str) -> ChatFormat:
    if form == "harmony":
        return ChatFormat(is_harmony=True)
    return ChatFormat(think_start="<think>", think_end="</think>", calls=FORMS[form])


def read(form: str, text: str, tools: Any = TOOLS) -> tuple[list[tuple[str, Any]], str, list[str]]:
    """(calls, content, ids), the same however the text is cut."""
    found: list[Any] = []
    for cut in every_cut(text) if len(text) < 400 else [[text], list(text)]:
        parser = build_parser(format_of(form), tools, begins="before" if form == "harmony" else "content")
        parts = parts_of(parser, cut)
        calls = [call for part in parts for call in part.calls]
        assert all(part.size >= 0 for part in parts)
        found.append(([(each.name, json.loads(each.arguments)) for each in calls], text_of(parts, "content")))
        ids = [each.id for each in calls]
        assert len(set(ids)) == len(ids)
    assert all(each == found[0] for each in found)
    return *found[0], ids


@pytest.mark.parametrize(
    ("form", "text", "calls"),
    [
        # a closing tag is missing between two arguments
        ("qwen3_coder", WRITE.format("a.txt\n"), [HELLO]),
        ("qwen3_coder", WRITE.format("a.txt\n</parameter>\n"), [HELLO]),
        ("glm47", GLM.format("Paris").replace("</arg_value>", "") + "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
         [("weather", {"city": "Paris", "days": 2})]),
        # and between two calls
        ("glm47", GLM.format("Paris") + GLM.format("Oslo") + "</tool_call>",
         [("weather", {"city": "Paris"}), ("weather", {"city": "Oslo"})]),
        # a backslash that escapes nothing in JSON
        ("json_tools", r'<tool_call>{"name": "write", "arguments": {"path": "s", "content": "s/(\d+)/\1/ it\'s"}}</tool_call>',
         [("write", {"path": "s", "content": r"s/(\d+)/\1/ it's"})]),
        # attributes beside the name
        ("minimax_m2", '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city" type="string">A</parameter>\n</invoke>\n</minimax:tool_call>',
         [("weather", {"city": "A"})]),
        # what is wrapped is text
        ("minicpm5", '<function name="write"><param name="path">a</param><param name="content"><![CDATA[</param></function>]]></param></function>',
         [("write", {"path": "a", "content": "</param></function>"})]),
        # texts of Python
        ("pythonic", r'<|tool_call_start|>[write(path="a", content=r"C:\d"), weather(city="A" "B")]<|tool_call_end|>',
         [("write", {"path": "a", "content": r"C:\d"}), ("weather", {"city": "AB"})]),
        # a prefix that is missing in the second call
        ("kimi_k2", SECTION.format(KIMI.format("functions.weather:0", '{"city": "A"}') + KIMI.format("weather:1", '{"city": "B"}')),
         [("weather", {"city": "A"}), ("weather", {"city": "B"})]),
        ("kimi_k2", SECTION.format(2 * KIMI.format("functions.weather:0", '{"city": "A"}')), [("weather", {"city": "A"})] * 2),
        # no arguments at all
        ("kimi_k2", SECTION.format(KIMI.format("functions.now:0", "")), [NOW]),
        ("mistral", "[TOOL_CALLS]now[ARGS]", [NOW]),
        ("json_tools", '<tool_call>{"name": "now", "arguments": []}</tool_call>', [NOW]),
        ("harmony", "<|channel|>commentary to=functions.now<|message|><|call|>", [NOW]),
        # a brace too many
        ("harmony", '<|channel|>commentary to=functions.weather<|message|>{"city": "A"}}<|call|>', [("weather", {"city": "A"})]),
        # line ends of another system
        ("qwen3_coder", WRITE.format("a.txt\n</parameter>\n").replace("\n", "\r\n"), [HELLO]),
        # a call behind a broken one
        ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "Paris"days": 2}\n[TOOL_CALLS]weather[ARGS]{"city": "Paris"}', [("weather", {"city": "Paris"})]),
    ],
)  # fmt: skip
def test_what_was_meant(form: str, text: str, calls: list[tuple[str, Any]]) -> None:
    assert read(form, text)[0] == calls


def test_tags_of_the_form_in_a_text_that_is_closed_are_text() -> None:
    content = "use <parameter=path>\nx\n</parameter> so"
    text = f"<tool_call>\n<function=write>\n<parameter=path>\na\n</parameter>\n<parameter=content>\n{content}\n</parameter>\n</function>\n</tool_call>"
    assert read("qwen3_coder", text)[0] == [("write", {"path": "a", "content": content})]


def test_what_was_not_offered_is_content_as_it_was_written() -> None:
    text = "<tool_call>[{'name':'launch','arguments':{'f':[0, 1]}},{'name':'now','arguments':{}}]</tool_call>"
    calls, content, _ = read("json_tools", text)
    assert (calls, content) == ([NOW], "{'name':'launch','arguments':{'f':[0, 1]}}")


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/A", "$defs": {"A": {"properties": {"a": STRING}}}},
        {"allOf": [{"properties": {"a": STRING}}, {"properties": {"b": {}}}]},
        {"anyOf": [{"properties": {"a": STRING}}, {"properties": {"b": {}}}]},
        {"additionalProperties": STRING},
        {"patternProperties": {"^(a+)+$": STRING}},
        {"properties": {"b": {"anyOf": [STRING]}, "a": {"$ref": "#/properties/b/anyOf/0"}}},
        {"properties": {"a": {"$ref": "#/$defs/A~1%20x"}}, "$defs": {"A/ x": STRING}},
        {"properties": {"a": {"$ref": "#/$defs/0"}}, "$defs": {**{str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(12)}, "12": STRING}},
        {"properties": {"a": {"anyOf": [STRING, {"$ref": "#/properties/a"}]}}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", ["10", "null", "[1]"])
def test_wherever_a_schema_says_text_it_is_text(schema: dict[str, Any], value: str) -> None:
    offered = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    text = f"<tool_call>\n<function=f>\n<parameter=a>\n{value}\n</parameter>\n</function>\n</tool_call>"
    assert read("qwen3_coder", text, offered)[0] == [("f", {"a": value})]


def test_schemas_that_refer_to_one_another_over_and_over_cost_little() -> None:
    layers = {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(30)}
    schema = {"$ref": "#/$defs/0", "$defs": {**layers, "30": {"properties": {"a": STRING}, "required": ["a"]}}}
    offered = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    text = "<tool_call>\n<function=f>\n<parameter=a>\n10\n</parameter>\n</function>\n</tool_call>"
    assert read("qwen3_coder", text, offered)[0] == [("f", {"a": "10"})]


LINE = '{"name":"weather","arguments":{"city":"x"}}\n'


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("llama_pythonic", "now()\n" * 3000 + "That is all."),
        ("llama_json", LINE * 2000 + "That is all."),
        ("json_tools", LINE * 2000 + "That is all."),
        ("json_tools", "[\n" + LINE.replace("\n", ",\n") * 2000 + "@"),
        ("qwen3_coder", '<tool_call>\n<function=write>\n<parameter=path>\n"' + '\\"' * 60_000 + "\n</parameter>\n</function>"),
        ("gemma4", "<|tool_call>call:weather{a" + " " * 60_000 + "}<tool_call|>"),
        ("harmony", "<|channel|>commentary to=functions.write<|message|>" + "x" * 100_000),
    ],
)  # fmt: skip
def test_much_that_looks_like_calls_is_looked_at_once(form: str, text: str) -> None:
    """Minutes where each line is a new beginning from which all is read again; the suite's limit notices."""
    for cut in ([text], [text[place : place + 40] for place in range(0, len(text), 40)]):
        parser = build_parser(format_of(form), TOOLS, begins="before" if form == "harmony" else "content")
        assert sum(part.size for part in parts_of(parser, cut)) == len(text)


def test_calls_that_text_follows_are_none_and_those_behind_it_are() -> None:
    text = "now()\nnow()\nThat is all.\nnow()"
    assert read("llama_pythonic", text)[:2] == ([NOW], "now()\nnow()\nThat is all.")


@pytest.mark.parametrize("text", ["<|channel|>final Hi there, no tag", "<|channel|>final Hi there, no tag<|return|>"])
def test_a_message_without_its_tag_is_not_lost(text: str) -> None:
    assert read("harmony", text)[1] == "Hi there, no tag"


def test_reasoning_of_several_messages_are_set_apart() -> None:
    text = "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|><|start|>assistant<|channel|>final<|message|>c"
    for cut in every_cut(text):
        assert text_of(parts_of(build_parser(format_of("harmony"), (), begins="before"), cut), "reasoning") == "a\n\nb"


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("Explained. <think> tags mark thoughts. They end with </think> tags.", "", None),
        ("Regex: a.<think>b", "", None),
        ("So. <think>b</think> 4", "b", "So. 4"),
        ("So.\n<think>\nb\n</think>\n4", "b", "So.\n4"),
    ],
)
def test_a_tag_that_is_talked_of_is_text(text: str, reasoning: str, content: str | None) -> None:
    for cut in every_cut(text):
        parts = parts_of(ChatParser(format_of("json_tools"), (), begins="content"), cut)
        assert text_of(parts, "reasoning").strip() == reasoning
        assert " ".join(text_of(parts, "content").split()) == " ".join((content or text).split())


def test_a_broken_call_within_what_may_be_a_reasoning_is_a_part_of_it() -> None:
    text = '<tool_call>\n{"name": "weather" "arguments": {"city": "Paris"}}\n</tool_call>\n</think>\nok'
    found = set()
    for cut in every_cut(text):
        parts = parts_of(build_parser(format_of("json_tools"), TOOLS, begins="before"), cut)
        found.add((text_of(parts, "reasoning"), text_of(parts, "content")))
    assert found == {(text.partition("\n</think>")[0], "ok")}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "0x10", "01"])
def test_a_number_that_json_does_not_have_never_becomes_another(number: str) -> None:
    """Not in the JSON of the arguments, which a client would fail to read, or read as something else."""
    offered = [tool("f", n={"type": "number"})]
    bodies = {
        "json_tools": f'<tool_call>{{"name": "f", "arguments": {{"n": {number}}}}}</tool_call>',
        "harmony": f'<|channel|>commentary to=functions.f<|message|>{{"n": {number}}}<|call|>',
        "qwen3_coder": f"<tool_call>\n<function=f>\n<parameter=n>\n{number}\n</parameter>\n</function>\n</tool_call>",
    }
    for form, body in bodies.items():
        parts = parts_of(
            build_parser(format_of(form), offered, begins="content" if form != "harmony" else "before"), [body]
        )
        for call in (each for part in parts for each in part.calls):
            value = json.loads(call.arguments, parse_constant=pytest.fail, parse_float=str)["n"]
            assert value == number, (form, call.arguments)


def test_text_behind_calls_is_content() -> None:
    for form in ("json_tools", "qwen3_coder", "deepseek_v31", "kimi_k2"):
        calls = {
            "json_tools": '<tool_call>{"name": "now", "arguments": {}}</tool_call>',
            "qwen3_coder": "<tool_call>\n<function=now>\n</function>\n</tool_call>",
            "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "kimi_k2": SECTION.format(KIMI.format("functions.now:0", "{}")),
        }[form]
        assert read(form, f"I look. {calls} Done.")[:2] == ([NOW], "I look. Done."), form
