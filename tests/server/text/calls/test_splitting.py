"""Calls apart from content, in one made-up form, wherever the text is cut."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.calls.form import CallForm
from server.text.detokenizer import CONTROL_MARK
from server.text.parsers.chat import ChatParser
from server.text.parsers.parts import ChatFormat, Part
from tests.server.text.parsers.cuts import calls_of, every_cut, parts_of, pieces, text_of

START, END = "<call>", "</call>"
GOOD, BAD = '{"name": "f", "arguments": {"a": 1}}', '{"name": '
LISTED = '[{"name": "f"}, {"name": "g", "arguments": "{}"}]'
_WORDS = (START, END, GOOD, BAD, "<", "</", "<call", "call>", " ", "\n", "a", "```json\n", "```", "}", '"')
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "required": required}}}
    for name, required in (("f", ["a"]), ("g", []))
]
FORM = CallForm(start=START, end=END, before="\n", after="\n")
FORMAT = ChatFormat(calls=FORM)
ENDLESS = ChatFormat(calls=replace(FORM, end=""))
F, G = ("f", '{"a": 1}'), ("g", "{}")
CALL = START + GOOD + END


def splitter(format: ChatFormat = FORMAT, **options: Any) -> ChatParser:
    return ChatParser(format, TOOLS, **options)


def read(text: str, format: ChatFormat = FORMAT, **options: Any) -> tuple[str, list[tuple[str, str]]]:
    parts = parts_of(splitter(format, **options), [text])
    return text_of(parts, "content"), calls_of(parts)


@given(cut=pieces(_WORDS), format=st.sampled_from([FORMAT, ENDLESS]), is_held=st.booleans())
def test_any_cut_gives_what_the_whole_gives(cut: Any, format: ChatFormat, is_held: bool) -> None:
    text, given_pieces = cut
    whole = read(text, format, is_held=is_held)
    for each in (given_pieces, list(text)):
        parts = parts_of(splitter(format, is_held=is_held), each)
        assert (text_of(parts, "content"), calls_of(parts)) == whole


@given(words=st.lists(st.sampled_from(_WORDS), max_size=16))
def test_no_word_is_lost(words: list[str]) -> None:
    """What is no call is in the content, in its order."""
    content, calls = read("".join(words), is_held=True)
    bare = re.sub(r"\s", "", content)
    left = re.sub(r"\s", "", "".join(words))
    if not calls:
        assert bare == left
    else:
        assert len(left) - len(bare) >= len(re.sub(r"\s", "", GOOD)) * len(calls)


CASES: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "nothing but a call": (CALL, "", [F]),
    "white space around a call": (f"\n{CALL}\n", "", [F]),
    "two calls": (f"{CALL}\n{CALL}", "", [F, F]),
    "a call that is two": (f"{START}{LISTED}{END}", "", [("f", "{}"), G]),
    "several objects in one pair of tags": (f"{START}\n{GOOD}\n{GOOD}\n{END}", "", [F, F]),
    "text before": (f"I ask.\n\n{CALL}", "I ask.", [F]),
    "text after": (f"{CALL}\nDone. ", "Done. ", [F]),
    "text around": (f"I ask.\n{CALL}\nDone.", "I ask.\nDone.", [F]),
    "no call": ("a < b \n", "a < b \n", []),
    "one that cannot be read": (f"a {START}{BAD}{END} b", f"a {START}{BAD}{END} b", []),
    "one that can, after one that cannot": (f"{START}{END}{CALL}", f"{START}{END}", [F]),
    "a tag that is spoken of": (f"A {START} opens one.\n{CALL}", f"A {START} opens one.", [F]),
    "the end before the end tag": (f"a {START}\n{GOOD}\n", "a", [F]),
    "the end in the end tag": (START + GOOD + "</ca", START + GOOD + "</ca", []),
    "another call before the end tag": (f"{START}{GOOD}\n{CALL}", "", [F, F]),
    "what was not offered": (f'{START}{{"name": "h"}}{END} b', f'{START}{{"name": "h"}}{END} b', []),
    "the end in a call of what was not offered": (START + '{"name": "h"}', START + '{"name": "h"}', []),
    "the end in the middle": (f"a {START}{BAD}", f"a {START}{BAD}", []),
    "half a tag": ("a <cal", "a <cal", []),
    "an end tag alone": (f"a{END}", f"a{END}", []),
    "nothing": ("", "", []),
    "what stands in a broken call": (f'{START}{{"name": "f" {CALL} b', f'{START}{{"name": "f" {CALL} b', []),
    "a call in what was not offered": (
        f'{START}{{"name": "h", "arguments": {{"x": "{START}"}}}}{END}',
        f'{START}{{"name": "h", "arguments": {{"x": "{START}"}}}}{END}',
        [],
    ),
    # where there is one sensible meaning
    "a closing tag in a text": (
        f'{START}{{"name": "f", "arguments": {{"a": "x {END} y"}}}}{END}', "", [("f", f'{{"a": "x {END} y"}}')],
    ),
    "raw control characters": (
        f'{START}{{"name": "f", "arguments": {{"a": "\tx\ny"}}}}{END}', "", [("f", '{"a": "\\tx\\ny"}')],
    ),
    "other names for the members": (f'{START}{{"tool_name": "f", "parameters": {{"a": 1}}}}{END}', "", [F]),
    "the API's own form": (f'{START}{{"type": "function", "function": {GOOD}}}{END}', "", [F]),
    "arguments beside the name": (f'{START}{{"name": "f", "a": 1}}{END}', "", [F]),
    "a prefix": (f'{START}{{"name": "functions.f", "arguments": {{"a": 1}}}}{END}', "", [F]),
    "a fence": (f"{START}\n```json\n{GOOD}\n```\n{END}", "", [F]),
    "a brace too few": (f"{START}\n{GOOD[:-1]}\n{END}", "", [F]),
    "two braces too few at the end": (f"{START}\n{GOOD[:-2]}", "", [F]),
    "a brace too many": (f"{START}\n{GOOD}}}\n{END}", "", [F]),
    "a comma too many": (f'{START}{{"name": "f", "arguments": {{"a": [1,],}},}}{END}', "", [("f", '{"a": [1]}')]),
    "quotes of Python": (f"{START}{{'name': 'f', 'arguments': {{'a': None}}}}{END}", "", [("f", '{"a": null}')]),
    "a backslash that escapes nothing": (
        f'{START}{{"name": "f", "arguments": {{"a": "\\d+"}}}}{END}', "", [("f", '{"a": "\\\\d+"}')],
    ),
    "no tags": (GOOD, "", [F]),
    "no tags, behind text": (f"I ask.\n{GOOD}", "I ask.", [F]),
    "no tags, and two": (f"{GOOD}\n{GOOD}", "", [F, F]),
    "no tags but a fence": (f"I ask.\n\n```json\n{GOOD}\n```", "I ask.", [F]),
    "no opening tag": (f"{GOOD}\n{END}", "", [F]),
    "no tags, and text behind": (f"{GOOD}\nThat is how.", f"{GOOD}\nThat is how.", []),
    "no tags, in a sentence": (f"Say {GOOD}", f"Say {GOOD}", []),
    "no tags, and nothing that is required": ('{"name": "f", "arguments": {}}', '{"name": "f", "arguments": {}}', []),
    "an object that is none": ('{"name": "Bob", "arguments": {}}', '{"name": "Bob", "arguments": {}}', []),
    "a list in an answer": ("[1, 2]\n[a](b)", "[1, 2]\n[a](b)", []),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_cases_cut_at_every_place(case: str) -> None:
    text, content, calls = CASES[case]
    for cut in every_cut(text):
        parts = parts_of(splitter(), cut)
        assert (text_of(parts, "content"), calls_of(parts)) == (content, calls)


def test_what_is_cut_off_is_not_completed() -> None:
    """A number may be half of one."""
    for text in (f"{START}\n{GOOD[:-2]}", f"{START}\n{GOOD[:-1]}"):
        parser = splitter()
        parts = [*parser.feed(text), *parser.flush(is_cut=True)]
        assert (text_of(parts, "content"), calls_of(parts)) == (text, [])
    parser = splitter()
    assert calls_of([*parser.feed(f"{START}{GOOD}"), *parser.flush(is_cut=True)]) == [F]


def test_held_to_a_form_nothing_else_is_a_call() -> None:
    """Where a grammar has calls written right, an answer that only looks like one is an answer."""
    assert read(GOOD, is_held=True) == (GOOD, [])
    assert read(CALL, is_held=True) == ("", [F])


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
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "no JSON"}',
        '{"name": "f", "arguments": {"a": NaN}}',
        '{"name": "unknown", "arguments": {"raw": "what?"}}',
        '{"name": "f", "arguments": {"a": 1}} and more',
        "[" * 100_000,
    ],
    ids=lambda body: body[:40],
)
def test_what_is_no_call_is_content(body: str) -> None:
    raw = START + body + END
    assert read(raw) == (raw, [])


@pytest.mark.parametrize("arguments", ["null", '""', '"{}"', "{}"])
def test_arguments_may_be_missing_or_be_json_of_json(arguments: str) -> None:
    assert read(START + f'{{"name": "g", "arguments": {arguments}}}' + END) == ("", [G])


def test_half_a_surrogate_pair_is_handed_on_as_it_was_written() -> None:
    assert read(START + '{"name": "f", "arguments": {"a": "\\ud800"}}' + END) == ("", [("f", '{"a": "\\ud800"}')])


def test_of_several_calls_those_that_were_offered_are_made() -> None:
    other = '{"name": "h", "arguments": {"b": 1}}'
    assert read(f"{START}[{GOOD}, {other}]{END}") == (other, [F])
    assert read(f"{START}\n{GOOD}\n{other}\n{END} so") == (f"{other} so", [F])


def test_without_an_end_tag_a_call_goes_on_to_the_end() -> None:
    for cut in every_cut(f"a {START} {GOOD}"):
        parts = parts_of(splitter(ENDLESS), cut)
        assert (text_of(parts, "content"), calls_of(parts)) == ("a", [F])
    assert read(f"a {START} {BAD}", ENDLESS) == (f"a {START} {BAD}", [])
    assert read(f"{START}{GOOD}\n{START}{GOOD}", ENDLESS) == ("", [F, F])


def test_ids_are_new_or_the_models_or_the_forms() -> None:
    def ids(body: str, **changes: Any) -> list[str]:
        format = ChatFormat(calls=replace(FORM, **changes))
        return [call.id for part in parts_of(splitter(format), [START + body + END]) for call in part.calls]

    first, second = ids(LISTED)
    assert first != second
    assert all(re.fullmatch(r"call_[0-9a-f]{24}", id) for id in (first, second))
    assert ids('{"name": "f", "id": "functions.f:0"}') == ["functions.f:0"]
    assert ids(LISTED, new_id=lambda: "abc") == ["abc", "abc"]


def test_only_one_call_and_nothing_after_it() -> None:
    for cut in every_cut(f"a{START}{LISTED}{END}b{CALL}"):
        parser = splitter(only_one=True)
        parts: list[Part] = [part for text in cut for part in parser.feed(text)]
        assert (text_of(parts, "content"), calls_of(parts)) == ("a", [("f", "{}")])
        assert parser.done


def test_content_goes_out_as_it_comes_and_a_call_when_it_is_complete() -> None:
    parser = splitter()
    texts = ["a", " ", "b<", "c", "ake", "\n<call>", GOOD, "</cal", "l>", "c"]
    out = [(text_of(parts, "content"), len(calls_of(parts))) for parts in map(parser.feed, texts)]
    assert out == [
        *[("a", 0), ("", 0), (" b", 0), ("", 0), ("<cake", 0)],
        *[("", 0), ("", 0), ("", 0), ("", 1), ("c", 0)],
    ]


def test_json_that_cannot_be_a_call_goes_out_as_it_comes() -> None:
    """Also where it begins a line: only a first member that a call may have is waited for."""
    parser = splitter()
    texts = ['{"', 'title"', ': "', "a"]
    assert [text_of(parser.feed(text), "content") for text in texts] == ["", "", '{"title": "', "a"]
    parser = splitter()
    texts = ['{"name"', ': "B', "ob", '",']
    assert "".join(text_of(parser.feed(text), "content") for text in texts) == '{"name": "Bob",'


def test_names_of_control_tokens_are_text_in_calls_alone() -> None:
    name = f"{CONTROL_MARK}<|im_end|>{CONTROL_MARK}"
    text = f'a{name}b {START}{{"name": "f", "arguments": {{"a": "x {name} y"}}}}{END}'
    for cut in (["".join(text)], [f"a{name}", text[len(f"a{name}") :]]):
        parts = parts_of(splitter(), cut)
        assert (text_of(parts, "content"), calls_of(parts)) == ("ab", [("f", '{"a": "x <|im_end|> y"}')])
    assert CONTROL_MARK in splitter().markup


def test_thousands_of_beginnings_cost_no_more_than_their_length() -> None:
    """Each might be a call up to the very end: so many are tried, and no more."""
    text = f'{START}{{"name": "f", "arguments": {{"a": "' * 2000
    assert read(text) == (text, [])
