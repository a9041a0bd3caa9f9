"""Values exactly as they were written: none of a number's digits is lost, and no text becomes another."""

from __future__ import annotations

import ast
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.calls.arguments import bare_arguments, items_of, json_arguments, members_of, python_arguments
from server.text.calls.values import Number, read_exact, read_literal, write_exact

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(JSON, st.booleans())
def test_json_is_read_and_written_as_it_was(value: Any, is_ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii)
    assert write_exact(read_exact(text)) == json.dumps(value, ensure_ascii=False)


@pytest.mark.parametrize("number", ["1" * 5000, "-0", "0.10", "1E+7", "1e999", "12345678901234567890.123456789012345"])
def test_no_digit_of_a_number_is_lost(number: str) -> None:
    assert write_exact(read_exact(f'{{"a": [{number}]}}')) == f'{{"a": [{number}]}}'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"a\tb\nc"', "a\tb\nc"),
        ("[1, 2,]", ["1", "2"]),
        ('{"a": "x,]", }', {"a": "x,]"}),
        ('"\\ud83d\\ude00"', "\U0001f600"),
    ],
)
def test_what_is_nearly_json(text: str, value: Any) -> None:
    assert read_exact(text) == value


@pytest.mark.parametrize("text", ["", "NaN", "[Infinity]", "'a'", "[1 2]", "{", "[" * 100_000, "1" * 10 + "x", "None"])
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(ValueError):
        read_exact(text)


def test_half_a_surrogate_pair_stays_an_escape() -> None:
    assert write_exact(read_exact('"\\ud800 \\udc00x"')) == '"\\ud800 \\udc00x"'


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.decimals(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4) | st.tuples(inner),
)


def exactly(value: Any) -> Any:
    """Numbers as the texts that they are, tuples as lists."""
    if isinstance(value, (list, tuple)):
        return [exactly(each) for each in value]
    if isinstance(value, dict):
        return {key: exactly(each) for key, each in value.items()}
    return Number(value) if isinstance(value, (int, Decimal)) and not isinstance(value, bool) else value


def as_python(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        ends = "()" if isinstance(value, tuple) else "[]"
        return ends[0] + "".join(as_python(each) + ", " for each in value) + ends[1]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {as_python(each)}" for key, each in value.items()) + "}"
    return str(value) if isinstance(value, Decimal) else repr(value)


@given(LITERALS)
def test_pythons_literals_are_read(value: Any) -> None:
    assert read_literal(as_python(value)) == exactly(value)


@given(st.text(alphabet="ab'\"\\nrtx0u1 \n\U0001f600", max_size=12))
def test_texts_are_unescaped_as_python_does(text: str) -> None:
    """But for line ends, and escapes that Python refuses or warns of, which stay."""
    source = f'"""{text}"""'
    try:
        expected = ast.literal_eval(source)
        found = read_literal(source)
    except (ValueError, SyntaxError, SyntaxWarning):
        return
    assert found == expected or "\\" in text


@pytest.mark.parametrize(
    "text", ["", "a", "f(1)", "1 + 1", "[1", "(1", "{[]: 2}", "'a", "'a' 7", "__import__('os')", "[" * 1000, "1_000"]
)
def test_what_is_no_literal(text: str) -> None:
    with pytest.raises(ValueError):
        read_literal(text)


# --- arguments


def test_the_members_of_an_object_with_their_texts() -> None:
    text = '{"a" : 1.50 ,"b":{"c":[1,2]}, "a": "x\ny"}'
    assert members_of(text) == [
        ("a", "x\ny", '"x\ny"'), ("b", {"c": [Number("1"), Number("2")]}, '{"c":[1,2]}'),
    ]  # fmt: skip
    assert members_of("{'a': True,}") == [("a", True, "true")]
    assert members_of('{"a": [1,],}') == [("a", [Number("1")], "[1]")]
    assert [argument.raw for argument in json_arguments('{"a": 1e5}')] == ["1e5"]
    assert items_of('[ {"a":1} , 2,"x"]') == ['{"a":1}', "2", '"x"']
    assert items_of("['a', {'b': 1,}]") == ["'a'", "{'b': 1,}"]


@given(st.text(alphabet='{}[]",:ab1\\ \n', max_size=20))
def test_whatever_is_written_it_is_read_or_refused(text: str) -> None:
    for read in (members_of, items_of, json_arguments, python_arguments, lambda each: bare_arguments(each, "'")):
        try:
            read(text)
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("()", []),
        ('(a="x", b=[1, {"c": true}])', [("a", "value", "x"), ("b", "value", '[1, {"c": true}]')]),
        ("(a='it\\'s', b=-1.5e3,)", [("a", "value", "it's"), ("b", "value", "-1.5e3")]),
        ("(city=New York, n=5)", [("city", "unknown", "New York"), ("n", "value", "5")]),
        ("( a = None )", [("a", "value", "None")]),
    ],
)
def test_keyword_arguments(text: str, arguments: list[tuple[str, str, str]]) -> None:
    assert [(each.key, each.kind, each.raw) for each in python_arguments(text)] == arguments


@pytest.mark.parametrize("text", ["('a')", "(a=1, 2)"])
def test_what_are_no_keyword_arguments(text: str) -> None:
    with pytest.raises(ValueError):
        python_arguments(text)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("{}", []),
        ("{a:<q>x, {y}<q>,b:5}", [("a", "value", "x, {y}"), ("b", "unknown", "5")]),
        ('{a:"x",b:New York}', [("a", "value", "x"), ("b", "unknown", "New York")]),
        ("{ a : {b:[1,<q>x<q>]} , }", [("a", "value", "{b:[1,<q>x<q>]}")]),
        ("{<q>a b<q>:true}", [("a b", "unknown", "true")]),
    ],
)
def test_bare_arguments(text: str, arguments: list[tuple[str, str, str]]) -> None:
    assert [(each.key, each.kind, each.raw) for each in bare_arguments(text, "<q>")] == arguments


def test_bare_values_within_others_are_what_they_say() -> None:
    (argument,) = bare_arguments("{a:{b:[1.50,<q>5<q>,Rome,true,null]}}", "<q>")
    assert argument.value == {"b": [Number("1.50"), "5", "Rome", True, None]}


@pytest.mark.parametrize("text", ["", "a", "{a}", "{a:1", "{a:<q>x}", "{a:1}x", "{:1}", "{a:1 b:{}}"])
def test_what_are_no_bare_arguments(text: str) -> None:
    with pytest.raises(ValueError):
        bare_arguments(text, "<q>")
