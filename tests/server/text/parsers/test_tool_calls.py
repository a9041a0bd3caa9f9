"""Calls apart from content, wherever the text is cut, against an oracle that sees the whole."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given

from server.text.parsers.parts import ChatFormat, Part
from server.text.parsers.tool_calls import ToolCallSplitter
from tests.server.text.parsers.cuts import calls_of, every_cut, parts_of, pieces, text_of

START, END = "<call>", "</call>"
GOOD, BAD = '{"name": "f", "arguments": {"a": 1}}', '{"name": '
LISTED = '[{"name": "f"}, {"name": "g", "arguments": "{}"}]'
_WORDS = (START, END, GOOD, BAD, "<", "</", "<call", "call>", " ", "\n", "a")
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "required": required}}}
    for name, required in (("f", ["a"]), ("g", []))
]


def parse_json(text: str, tools: Any = None) -> Any:
    return json.loads(text.strip())


FORMAT = ChatFormat(tool_start=START, tool_end=END, parse_tool_call=parse_json)
ENDLESS = ChatFormat(tool_start=START, tool_end="", parse_tool_call=parse_json)


def splitter(format: ChatFormat = FORMAT, **options: bool) -> ToolCallSplitter:
    return ToolCallSplitter(format, TOOLS, **options)


def is_call(body: str) -> bool:
    return body.strip() == GOOD


def expected(text: str) -> tuple[str, int]:
    """(content, number of calls) of the text as a whole, where GOOD is a call and nothing else is."""
    content, count, is_after = "", 0, False
    while text:
        before, tag, text = text.partition(START)
        if is_after and (not content or not (tag or before.strip())):
            before = before.lstrip() if before.strip() or not tag else before
        said = before.rstrip() if tag else before
        content += said
        if not tag:
            break
        body, end, text = text.partition(END)
        whole = body if end else re.sub(r"<(/(c(al?l?)?)?)?\Z", "", body)
        if is_call(whole):
            count, is_after = count + 1, True
        else:
            content, is_after = content + before[len(said) :] + tag + body + end, False
    return content, count


@given(cut=pieces(_WORDS))
def test_any_cut_gives_what_the_whole_gives(cut):
    text, given_pieces = cut
    parts = parts_of(splitter(), given_pieces)
    content, count = expected(text)
    assert text_of(parts, "content") == content
    assert calls_of(parts) == [("f", '{"a": 1}')] * count


F, G = ("f", '{"a": 1}'), ("g", "{}")
CALL = START + GOOD + END
CASES: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "nothing but a call": (CALL, "", [F]),
    "white space around a call": (f"\n{CALL}\n", "", [F]),
    "two calls": (f"{CALL}\n{CALL}", "", [F, F]),
    "a call that is two": (f"{START}{LISTED}{END}", "", [("f", "{}"), G]),
    "text before": (f"I ask.\n\n{CALL}", "I ask.", [F]),
    "text after": (f"{CALL}\nDone. ", "Done. ", [F]),
    "text around": (f"I ask.\n{CALL}\nDone.", "I ask.\nDone.", [F]),
    "no call": ("a < b \n", "a < b \n", []),
    "one that cannot be read": (f"a {START}{BAD}{END} b", f"a {START}{BAD}{END} b", []),
    "one that can, after one that cannot": (f"{START}{END}{CALL}", f"{START}{END}", [F]),
    "the end before the end tag": (f"a {START}\n{GOOD}\n", "a", [F]),
    "the end in the end tag": (START + GOOD + "</ca", "", [F]),
    "the end before all that is required": (START + '{"name": "f"}', START + '{"name": "f"}', []),
    "the end in a call of what was not offered": (START + '{"name": "h"}', START + '{"name": "h"}', []),
    "the end in the middle": (f"a {START}{BAD}", f"a {START}{BAD}", []),
    "half a tag": ("a <cal", "a <cal", []),
    "an end tag alone": (f"a{END}", f"a{END}", []),
    "nothing": ("", "", []),
}


@pytest.mark.parametrize("case", CASES)
def test_cases_cut_at_every_place(case):
    text, content, calls = CASES[case]
    for cut in every_cut(text):
        parts = parts_of(splitter(), cut)
        assert (text_of(parts, "content"), calls_of(parts)) == (content, calls)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "7",
        "[]",
        "[7]",
        '{"arguments": {}}',
        '{"name": "", "arguments": {}}',
        '{"name": 7, "arguments": {}}',
        '{"name": "f", "arguments": []}',
        '{"name": "f", "arguments": "no JSON"}',
        '{"name": "f", "arguments": {"a": NaN}}',
        '{"name": "f", "arguments": {"a": "\\ud800"}}',
        '{"name": "unknown", "arguments": {"raw": "what?"}}',
        "[" * 100_000,
    ],
    ids=lambda body: body[:40],
)
def test_what_is_no_call_is_content(body):
    raw = START + body + END
    parts = parts_of(splitter(), [raw])
    assert (text_of(parts, "content"), calls_of(parts)) == (raw, [])


@pytest.mark.parametrize("error", [ValueError, KeyError, AttributeError, RecursionError])
def test_a_parser_may_raise_anything(error):
    def fail(text: str, tools: Any) -> Any:
        raise error("no")

    parts = parts_of(splitter(ChatFormat(tool_start=START, tool_end=END, parse_tool_call=fail)), [CALL])
    assert text_of(parts, "content") == CALL


@pytest.mark.parametrize("arguments", ["null", '""', '"{}"', "{}"])
def test_arguments_may_be_missing_or_be_json_of_json(arguments):
    parts = parts_of(splitter(), [START + f'{{"name": "g", "arguments": {arguments}}}' + END])
    assert calls_of(parts) == [G]


def test_the_parser_is_given_what_stands_between_the_tags_and_the_tools():
    seen = []

    def parse(text: str, tools: Any) -> Any:
        seen.append((text, tools))
        return {"name": "f"}

    parts_of(splitter(ChatFormat(tool_start=START, tool_end=END, parse_tool_call=parse)), [f"{START}\nx {END}"])
    assert seen == [("\nx ", TOOLS)]


def test_without_an_end_tag_a_call_goes_on_to_the_end():
    for cut in every_cut(f"a {START} {GOOD}"):
        parts = parts_of(splitter(ENDLESS), cut)
        assert (text_of(parts, "content"), calls_of(parts)) == ("a", [F])
    assert text_of(parts_of(splitter(ENDLESS), [f"a {START} {BAD}"]), "content") == f"a {START} {BAD}"


def test_ids_are_new_or_the_models_or_the_formats():
    def ids(body: str, **changes: Any) -> list[str]:
        format = ChatFormat(tool_start=START, tool_end=END, parse_tool_call=parse_json, **changes)
        return [call.id for part in parts_of(splitter(format), [START + body + END]) for call in part.calls]

    first, second = ids(LISTED)
    assert first != second
    assert all(re.fullmatch(r"call_[0-9a-f]{24}", id) for id in (first, second))
    assert ids('{"name": "f", "id": "functions.f:0"}') == ["functions.f:0"]
    assert ids(LISTED, new_id=lambda: "abc") == ["abc", "abc"]


def test_only_one_call_and_nothing_after_it():
    for cut in every_cut(f"a{START}{LISTED}{END}b{CALL}"):
        parser = splitter(only_one=True)
        parts: list[Part] = [part for text in cut for part in parser.feed(text)]
        assert (text_of(parts, "content"), calls_of(parts)) == ("a", [("f", "{}")])
        assert parser.done


def test_content_goes_out_as_it_comes_and_a_call_when_it_is_complete():
    parser = splitter()
    texts = ["a", " ", "b<", "c", "ake", "\n<call>", GOOD, "</cal", "l>", "c"]
    out = [(text_of(parts, "content"), len(calls_of(parts))) for parts in map(parser.feed, texts)]
    assert out == [
        *[("a", 0), ("", 0), (" b", 0), ("", 0), ("<cake", 0)],
        *[("", 0), ("", 0), ("", 0), ("", 1), ("c", 0)],
    ]


def test_half_a_tag_before_a_stop_string_is_given_out_only_if_it_is_none():
    for cut, left in (("all>", "a "), ("ake", "a <c")):
        parser = splitter()
        assert text_of([*parser.feed("a <c"), *parser.flush(cut)], "content") == left
