"""Calls that are demanded, family by family: whatever is drawn among what is allowed is read as a right call."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.grammars.process import Grammar
from server.text.calls.form import CallForm
from server.text.calls.forms import FORMS
from server.text.calls.grammar import grammar_of_calls, grammar_of_text, harmony_grammar
from server.text.calls.tagged_forms import DSML
from server.text.calls.values import Number
from server.text.calls.writer import write_calls
from server.text.grammar import GrammarError, GrammarSource
from server.text.parsers.chat import ChatParser
from server.text.parsers.parts import ChatFormat
from tests.compiling import COMPILER
from tests.schemas import random_schema
from tests.server.text.calls.test_families import CALLS, PARAMETERS, TOOLS
from tests.server.text.test_grammar import END, PERSON, SLOW, allowed


def spelled(text: str, tokens: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """`tokens`: what stands for which text."""
    pieces = re.split("(" + "|".join(map(re.escape, tokens)) + ")", text) if tokens else [text]
    return [tokens.get(piece, json.dumps(piece)) for piece in pieces if piece]


NAMES = [name for name in FORMS if name != "laguna"]  # which is GLM's


def calls_of(name: str, text: str, tools: Any = TOOLS) -> list[tuple[str, Any]]:
    parser = ChatParser(ChatFormat(calls=FORMS[name]), tools, begins="content", is_held=True)
    parts = parser.feed(text) + parser.flush()
    assert not "".join(part.text for part in parts).strip(), text
    return [(call.name, json.loads(call.arguments)) for part in parts for call in part.calls]


def tool(name: str, parameters: Any, *, strict: bool = False) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, "strict": strict}}


def random_arguments(dice: random.Random) -> dict[str, Any]:
    """An object whose properties are of all kinds, texts with limits among them."""
    texts: list[Any] = [
        {"type": "string"},
        {"type": "string", "enum": ["a", "b c", "null", "5"]},
        {"type": "string", "minLength": 1, "maxLength": 4},
        {"type": "string", "pattern": "^[a-c]{2,3}$"},
        {"type": ["string", "null"]},
        {"anyOf": [{"type": "integer"}, {"type": "string", "enum": ["x"]}, {"type": "null"}]},
        {"type": "integer"},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "array", "items": {"type": "integer", "maximum": 9, "minimum": 0}, "maxItems": 3},
        {"enum": [1, "one", None]},
        {"$ref": "#/$defs/city"},
    ]
    kinds = [random_schema(dice) if dice.random() < 0.2 else dice.choice(texts) for _ in range(dice.randint(0, 4))]
    names = [f"key_{place}" for place in range(len(kinds))]
    return {
        "type": "object",
        "properties": dict(zip(names, kinds, strict=True)),
        "required": [name for name in names if dice.random() < 0.5],
        "$defs": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
    }


TYPES = {
    str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array", type(None): "null",
}  # fmt: skip


def is_right(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Of the keywords that the schemas here have."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return any(is_right(value, each, root) for each in schema["anyOf"])
    if "enum" in schema:
        return any(value == each and type(value) is type(each) for each in schema["enum"])
    if isinstance(schema["type"], list):
        return any(is_right(value, {**schema, "type": each}, root) for each in schema["type"])
    if TYPES[type(value)] != schema["type"] and (type(value), schema["type"]) != (int, "number"):
        return False
    if isinstance(value, dict):
        known = schema.get("properties", {})
        return set(schema.get("required", ())) <= value.keys() and all(
            is_right(each, known[key], root)
            if key in known
            else schema.get("additionalProperties", True) and schema is root
            for key, each in value.items()
        )
    if isinstance(value, list):
        return len(value) <= schema.get("maxItems", 10**6) and all(
            is_right(each, schema["items"], root) for each in value
        )
    if isinstance(value, str):
        least, most = schema.get("minLength", 0), schema.get("maxLength", 10**6)
        return least <= len(value) <= most and bool(re.search(schema.get("pattern", ""), value))
    return value is None or bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))


def drawn(source: GrammarSource, name: str, dice: random.Random) -> str:
    """A text of the grammar, whose free texts come to an end: their closing tag is drawn whole now and then."""
    form = FORMS[name]
    endings = [b'"', *(mark.encode() for mark in (form.quote, form.pair.tail if form.pair else "") if mark)]
    state, written = COMPILER.compile(source).start(), bytearray()
    for _ in range(3000):
        choices = allowed(state)
        assert choices, "nothing is allowed, not even to end"
        if END in choices and (len(choices) == 1 or dice.random() < 0.5):
            return written.decode()
        said = [min(choices, key=lambda each: (each in SLOW, each == END, dice.random()))]
        if len(choices) > 50 and dice.random() < 0.3:
            said = list(dice.choice(endings))
        if said == [END]:
            return written.decode()
        for token_id in said:
            if token_id not in allowed(state):
                break
            state.accept(token_id)
            written.append(token_id)
    raise AssertionError(f"no end: {bytes(written)!r}")


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=8, deadline=None)
def test_whatever_is_drawn_is_a_right_call(name: str, seed: int) -> None:
    dice = random.Random(seed)
    tools = [tool(f"tool_{place}", random_arguments(dice)) for place in range(dice.randint(1, 3))]
    only_one = dice.random() < 0.5
    try:
        source = grammar_of_calls(tools, FORMS[name], spelled, only_one=only_one)
        COMPILER.compile(source)
    except GrammarError as error:
        assert re.search("supported|has a name|contradict one another", str(error))
        return
    text = drawn(source, name, dice)
    found = calls_of(name, text, tools)
    assert found
    assert len(found) == 1 or not only_one
    schemas = {each["function"]["name"]: each["function"]["parameters"] for each in tools}
    for called, arguments in found:
        assert is_right(arguments, schemas[called], schemas[called]), (text, called, arguments)


# --- calls in free text

TAGGED = CallForm(start="<tool>", end="</tool>", before="\n", after="\n")
WEIGH: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weigh", "strict": True, "parameters": PERSON}},
    {"type": "function", "function": {"name": "loose", "parameters": PERSON}},
]


def text_with(tools: list[dict[str, Any]], tokens: Mapping[str, str] = MappingProxyType({})) -> GrammarSource:
    return grammar_of_text(tools, TAGGED, lambda text: spelled(text, tokens))


FREE = COMPILER.compile(text_with(WEIGH), for_good=True)
BOB = '<tool>\n{"name": "weigh", "arguments": {"name": "Bob", "age": 7}}\n</tool>'


def refused_at(text: str, grammar: Grammar = FREE) -> int | None:
    """The byte that may not come; None if all may, and then the end."""
    state = grammar.start()
    for place, token_id in enumerate(text.encode()):
        if token_id not in allowed(state):
            return place
        state.accept(token_id)
    return None if END in allowed(state) else len(text)


@pytest.mark.parametrize(
    "text",
    ["", "hi", "<", "a <too b", "<tool", "{}", BOB, f"I ask.\n{BOB}", f"{BOB}{BOB}", f"{BOB}\n{BOB} so.", "</tool>",
     '<tool>\n{"name": "loose", "arguments": {"any": [1]}}\n</tool>'],
)  # fmt: skip
def test_text_is_free_and_calls_may_be_in_it(text: str) -> None:
    assert refused_at(text) is None


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<tool>", ""),
        ("a <tool>x", "x"),
        ('<tool>\n{"name": "other"', 'other"'),
        (BOB.replace("Bob", "Carl"), 'Carl", "age": 7}}\n</tool>'),
        (BOB.replace("7", '"7"'), '"7"}}\n</tool>'),
        (BOB + "\n<tool>..", ".."),
        (BOB[:-1], ""),
    ],
)
def test_a_call_that_is_begun_is_right(text: str, rest: str) -> None:
    place = refused_at(text)
    assert place is not None
    assert text[place:] == rest


def test_a_call_behind_a_tag_that_is_a_token() -> None:
    tokens = {"<tool>": "<[258]>", "</tool>": "<[259]>"}
    state = COMPILER.compile(text_with(WEIGH, tokens)).start()
    for token_id in (*b"I ask <tool>", 258):
        assert token_id in allowed(state)
        state.accept(token_id)
    assert allowed(state) == [ord("\n")]
    for token_id in (*b'\n{"name": "weigh", "arguments": {"name": "Ada", "age": 9}}\n', 259, *b"so"):
        assert token_id in allowed(state)
        state.accept(token_id)
    assert {END, 258, ord("a")} <= set(allowed(state))


def test_a_strict_schema_that_cannot_be_honoured_is_named() -> None:
    wrong: dict[str, Any] = {"patternProperties": {"a": {}}}
    text_with([tool("f", wrong)])
    with pytest.raises(GrammarError, match="patternProperties"):
        text_with([tool("f", wrong, strict=True)])


# --- each family's own form

WRITTEN = {
    **CALLS,
    "command_a": CALLS["command_a"].replace('"tool_call_id": "0", ', ""),
    "command_r": CALLS["command_r"]
    .replace("    ", "")
    .replace("]```", "]\n```")
    .replace("[\n{", "[{")
    .replace("}\n]", "}]"),
}
"""As the models write them, but for what they need not write."""


@pytest.mark.parametrize("is_strict", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_what_the_models_write_is_allowed(name: str, is_strict: bool) -> None:
    tools = [tool("weather", PARAMETERS, strict=is_strict)]
    text = WRITTEN[name]
    form = FORMS[name]
    grammar = COMPILER.compile(grammar_of_text(tools, form, spelled))
    demanded = COMPILER.compile(grammar_of_calls(tools, form, spelled, only_one=False))
    said = [text] if not form.opening else ["Hi, a <b", text, f"I ask.\n{text}"]
    for allowed_text in ("Hi, a <b", *said):
        assert refused_at(allowed_text, grammar) is None
    assert refused_at(text, demanded) is None
    wrong = refused_at(text.replace(">2<", ">two<").replace("2", "two"), grammar)
    is_bare = form.style == "pairs"  # there "two" is a text
    assert (wrong is not None) == (is_strict or not is_bare)
    assert refused_at("Hi", demanded) == 0


ANSWERS = {
    "schema": (GrammarSource.of_schema({"type": "object", "properties": {"n": {"type": "integer"}}}), '{"n": 4}'),
    "choice": (GrammarSource.of_choices(["yes", "no"]), "no"),
    "regex": (GrammarSource("regex", "[a-c]+"), "abc"),
    "lark": (GrammarSource("lark", 'start: call rest\ncall: "a"\nrest: /[0-9]/'), "a4"),
}


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("name", NAMES)
def test_a_call_or_an_answer_in_its_form(name: str, kind: str) -> None:
    """The names of a client's own rules do not meet with those of the calls."""
    source, said = ANSWERS[kind]
    tools = [tool("weather", PARAMETERS)]
    grammar = COMPILER.compile(grammar_of_calls(tools, FORMS[name], spelled, only_one=True, answer=source))
    assert refused_at(said, grammar) is None
    assert refused_at(WRITTEN[name], grammar) is None
    assert refused_at("Hi", grammar) == 0
    assert refused_at(f"{said} {WRITTEN[name]}", grammar) is not None


def test_numbers_of_64_bits_can_be_written() -> None:
    for name in ("qwen3_coder", "gemma4", "json_tools", "pythonic"):
        tools = [tool("f", {"properties": {"a": {"type": "integer"}}, "required": ["a"]})]
        grammar = COMPILER.compile(grammar_of_calls(tools, FORMS[name], spelled, only_one=True))
        text = write_calls(FORMS[name], [("f", {"a": Number("1234567890123456789")})])
        assert refused_at(text, grammar) is None, name


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"properties": {"a b": {}}}, "'a b'"),
        ({"properties": {"a": {"type": "string", "contentEncoding": "base64"}}}, "contentEncoding"),
        ({"properties": {"a": {"type": "string", "enum": ["</parameter>"]}}}, "</parameter>"),
        ({"properties": {"a": {"not": {"type": "integer"}}}}, "supported"),
        ({"oneOf": [{"required": ["a"]}]}, "oneOf"),
        ({"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/a"}}}, "supported"),
        (
            {
                "properties": {"a": {"$ref": "#/$defs/a"}},
                "$defs": {"a": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/a"}]}},
            },
            "one of its own",
        ),
        ({"required": ["a"]}, "'a'"),
        ({"properties": {"a": {"type": "object", "patternProperties": {"b": {}}}}}, "patternProperties"),
    ],
)
def test_what_a_row_of_arguments_cannot_be_held_to(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(GrammarError, match=said):
        grammar_of_calls([tool("f", parameters)], FORMS["qwen3_coder"], spelled, only_one=True)


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        (r"^\d{2}$", "42", "\u0664\u0664"),
        (r"[\d.]+x", "a1.x", "x"),
        ("^/a/b$", "/a/b", "/a/c"),
        (r"^\/a\/b", "/a/bc", "a/b"),
        (r"^\w+", "b-", "-"),
        (r"\$$", "5$", "5"),
    ],
)
def test_patterns_of_texts(pattern: str, right: str, wrong: str) -> None:
    parameters = {"properties": {"a": {"type": "string", "pattern": pattern}}, "required": ["a"]}
    source = grammar_of_calls([tool("f", parameters)], FORMS["qwen3_coder"], spelled, only_one=True)
    for line_end in ("", "\n"):
        text = f"<tool_call>\n<function=f>\n<parameter=a>\n{{}}{line_end}</parameter>\n</function>\n</tool_call>"
        assert refused_at(text.format(right), COMPILER.compile(source)) is None
        assert refused_at(text.format(wrong), COMPILER.compile(source)) is not None


VALUES = st.recursive(
    st.sampled_from(["string", "integer", "object", "array", "#/$defs/a", "^a/\\\\/$"])
    | st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.text(max_size=3)
    | st.just(10**30)
    | st.just(1.5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
KEYWORDS = (
    "type", "enum", "const", "properties", "required", "anyOf", "oneOf", "allOf", "$ref", "$defs", "pattern", "items",
    "minLength", "maxLength", "minimum", "maximum", "additionalProperties", "not", "patternProperties", "maxItems",
)  # fmt: skip
SCHEMAS = st.recursive(
    st.dictionaries(st.sampled_from(KEYWORDS), VALUES, max_size=3),
    lambda inner: st.dictionaries(
        st.sampled_from(KEYWORDS), VALUES | inner | st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["a", "b c"]), inner | VALUES, max_size=2), max_size=3
    ),
    max_leaves=5,
)  # fmt: skip


@given(schema=SCHEMAS, name=st.sampled_from(NAMES))
@settings(max_examples=200, deadline=None)
def test_whatever_a_schema_is_it_is_taken_or_refused(schema: dict[str, Any], name: str) -> None:
    for grammar in (
        lambda: grammar_of_calls([tool("f", schema)], FORMS[name], spelled, only_one=True),
        lambda: grammar_of_text([tool("f", schema, strict=True)], FORMS[name], spelled),
        lambda: harmony_grammar([tool("f", schema)], spelled, must_call=True),
    ):
        try:
            COMPILER.compile(grammar())
        except GrammarError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("gemma4", {"<|tool_call>": 257, '<|"|>': 258, "<tool_call|>": 259}),
        ("glm47", {"<tool_call>": 257, "<arg_value>": 258, "</arg_value>": 259}),
        ("kimi_k2", {"<|tool_calls_section_begin|>": 257, "<|tool_call_begin|>": 258, "<|tool_call_end|>": 259}),
        ("mistral", {"[TOOL_CALLS]": 257, "[ARGS]": 258}),
        ("deepseek_v32", {DSML: 257}),
        (
            "deepseek",
            dict(
                zip(("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁calls▁end｜>"), (257, 258, 259), strict=True)
            ),
        ),
    ],
)
def test_tags_that_are_tokens(name: str, tokens: dict[str, int]) -> None:
    """They are not written letter by letter, and no text within a call has one."""
    terminals = {tag: f"<[{token_id}]>" for tag, token_id in tokens.items()}
    tools = [tool("weather", PARAMETERS, strict=True)]
    for build in (partial(grammar_of_calls, only_one=False), grammar_of_text):
        source = build(tools, FORMS[name], partial(spelled, tokens=terminals))
        state = COMPILER.compile(source).start()
        for piece in spelled(WRITTEN[name], {tag: str(token_id) for tag, token_id in tokens.items()}):
            for token_id in [int(piece)] if piece.isdigit() else json.loads(piece).encode():
                assert token_id in allowed(state), (source.text, piece)
                state.accept(token_id)
        assert END in allowed(state)


@pytest.mark.parametrize("name", ["qwen3_coder", "gemma4", "deepseek"])
def test_a_hundred_tools_are_not_too_many(name: str) -> None:
    """What is alike in them is written once."""
    properties = {f"argument_{place}": {"type": ("string", "integer")[place % 2]} for place in range(10)}
    tools = [tool(f"tool_{place}", {"type": "object", "properties": properties}, strict=True) for place in range(100)]
    COMPILER.compile(grammar_of_text(tools, FORMS[name], spelled))
