"""Grammars: whatever is chosen among what is allowed, the text follows them. Over bytes, as the mock has them."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.grammars.process import Grammar, GrammarState
from server.text.grammar import ANY_OBJECT, GrammarError, GrammarSource, check_keywords
from server.text.reasoning import Reasoning
from tests.compiling import COMPILER, TOKENIZER, BlockingCompiler
from tests.schemas import follows, random_schema

(END,) = TOKENIZER.eos_ids
SLOW = frozenset(b" \n0123456789")

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def allowed(state: GrammarState) -> list[int]:
    bits = state.allowed()
    assert bits is not None
    return [token_id for token_id in range(TOKENIZER.vocab_size) if bits[token_id // 8] >> token_id % 8 & 1]


def walk(grammar: Grammar, source: random.Random, steps: int = 2000) -> str:
    """The text of tokens drawn at random among the allowed, to the end of the grammar."""
    state = grammar.start()
    written: list[int] = []
    for _ in range(steps):
        choices = allowed(state)
        assert choices, "nothing is allowed, not even to end"
        # short of drawing it out: white space and digits could go on for long
        token_id = min(choices, key=lambda each: (each != END, each in SLOW, source.random()))
        if token_id == END:
            return bytes(written).decode()
        written.append(token_id)
        state.accept(token_id)
    raise AssertionError(f"no end: {bytes(written)!r}")


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_what_a_schema_lets_through_follows_it(seed: int) -> None:
    source = random.Random(seed)
    schema = random_schema(source)
    written = walk(COMPILER.compile(GrammarSource.of_schema(schema)), source)
    assert follows(json.loads(written), schema)


@pytest.mark.parametrize("seed", range(5))
def test_regular_expressions_choices_and_any_object(seed: int) -> None:
    source = random.Random(seed)
    code = walk(COMPILER.compile(GrammarSource("regex", "[a-c]{3}/[x-z]")), source)
    assert code[3] == "/" and len(code) == 5
    choices = ("yes", 'a "quoted" one', "no\n")
    assert walk(COMPILER.compile(GrammarSource.of_choices(choices)), source) in choices
    assert isinstance(json.loads(walk(COMPILER.compile(ANY_OBJECT), source)), dict)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (GrammarSource.of_schema({"not": {"type": "string"}}), "not"),
        (GrammarSource.of_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (GrammarSource.of_schema({"properties": {"a": {"patternProperties": {"^x": {}}}}}), "patternProperties"),
        (GrammarSource.of_schema({"type": "bogus"}), "bogus"),
        (GrammarSource.of_schema({"$ref": "#/nowhere"}), "nowhere"),
        (GrammarSource.of_schema(True), "must be an object"),
        (GrammarSource("json_schema", "{"), "not JSON"),
        (GrammarSource("regex", "(?=a)b"), "look-around"),
        (GrammarSource("regex", "("), "unclosed group"),
        (GrammarSource("lark", "start: nothing"), "nothing"),
        (GrammarSource("regex", "a" * 300_000), "at most"),
    ],
)
def test_what_cannot_be_honoured_is_named(source: GrammarSource, said: str) -> None:
    with pytest.raises(GrammarError, match=said) as caught:
        COMPILER.compile(source)
    assert len(str(caught.value)) < 400


def test_names_are_no_keywords() -> None:
    schemas: list[dict[str, Any]] = [
        {"type": "object", "properties": {"patternProperties": {"type": "null"}}},
        {"const": {"patternProperties": {}}},
    ]
    for schema in schemas:
        COMPILER.compile(GrammarSource.of_schema(schema))


def test_a_deep_schema_is_refused_and_not_followed_to_its_end() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(400):
        schema = {"anyOf": [schema]}
    with pytest.raises(GrammarError, match="nested deeper"):
        COMPILER.compile(GrammarSource.of_schema(schema))


def test_the_same_source_is_compiled_once_and_its_states_are_apart() -> None:
    compiler = BlockingCompiler(TOKENIZER)
    first, second = (compiler.compile(GrammarSource.of_schema(PERSON)).start() for _ in range(2))
    for token_id in b'{"name"':
        first.accept(token_id)
    assert allowed(second) == [ord("{")]
    assert ord(":") in allowed(first)


def test_only_the_end_is_left_when_it_is_done_and_what_follows_changes_nothing() -> None:
    state = COMPILER.compile(GrammarSource.of_schema(PERSON)).start()
    for token_id in b'{"name":"Ada","age":7}':
        assert token_id in allowed(state)
        state.accept(token_id)
    assert allowed(state) == [END]
    state.accept(END)
    state.accept(65)
    assert allowed(state) == [END]


# --- after a thought; "<" and "/>" stand for its marks

MARKS = Reasoning(start_ids=(ord("<"),), end_ids=tuple(b"/>"))


def test_a_reasoning_is_free_and_the_grammar_begins_behind_it() -> None:
    state = COMPILER.compile(GrammarSource.of_schema(PERSON), MARKS).start()
    assert set(allowed(state)) == {ord("<"), ord("{"), ord("\n"), ord(" ")}
    for token_id in b"<any / thing / >":
        state.accept(token_id)
        assert state.allowed() is None
    for token_id in b"/>":
        state.accept(token_id)
    assert set(allowed(state)) == {ord("{"), ord("\n"), ord(" ")}


def test_without_a_reasoning_the_grammar_begins_at_once() -> None:
    state = COMPILER.compile(GrammarSource.of_schema(PERSON), MARKS).start()
    state.accept(ord("{"))
    assert ord("<") not in allowed(state)
    assert ord('"') in allowed(state)


@pytest.mark.parametrize(("regex", "text"), [(r"a/b", "a/b"), (r"a\/b", "a/b"), (r"a\\/b", "a\\/b"), ("a\nb", "a\nb")])
def test_slashes_and_line_ends_in_a_regular_expression(regex: str, text: str) -> None:
    assert walk(COMPILER.compile(GrammarSource("regex", regex)), random.Random(0)) == text


def test_a_reasoning_that_the_prompt_has_begun() -> None:
    opened = Reasoning(start_ids=(ord("<"),), end_ids=tuple(b"/>"), is_open=True)
    state = COMPILER.compile(GrammarSource.of_schema(PERSON), opened).start()
    assert state.allowed() is None
    for token_id in b"so/>":
        state.accept(token_id)
    assert ord("{") in allowed(state)


@pytest.mark.parametrize(
    "schema",
    [
        {"maximum": 2**63 - 1},
        {"minimum": -(2**63), "maximum": 0.5},
        {"maximum": 1_000_000_000_000_000_000},
        {"enum": [[{"a": 10**22}], 2**53, True, 0.1]},
        {"const": -(2**53)},
        {"default": 2**64 + 1, "examples": [2**64 + 1]},
        {"properties": {"minimum": {"maximum": 5}, "const": {"type": "integer"}}},
    ],
)
def test_numbers_that_are_held_exactly(schema: dict[str, Any]) -> None:
    check_keywords(schema)


@pytest.mark.parametrize(
    ("schema", "number"),
    [
        ({"maximum": 2**63 - 2}, 2**63 - 2),
        ({"minimum": -(2**63) + 1}, -(2**63) + 1),
        ({"exclusiveMaximum": 2**63}, 2**63),
        ({"maximum": 1e19}, 1e19),
        ({"const": 2**53 + 1}, 2**53 + 1),
        ({"const": 2**64}, 2**64),
        ({"enum": [1, {"a": [-(2**53) - 1]}]}, -(2**53) - 1),
        ({"properties": {"minimum": {"maximum": 2**53 + 1}}}, 2**53 + 1),
        ({"anyOf": [{"multipleOf": 2**53 + 1}]}, 2**53 + 1),
    ],
)
def test_numbers_that_would_become_others(schema: dict[str, Any], number: float) -> None:
    with pytest.raises(GrammarError, match=f"the number {re.escape(str(number))} "):
        check_keywords(schema)


def test_numbers_of_embedded_schemas() -> None:
    with pytest.raises(GrammarError, match=r"the number 0\.10000000000000000001 "):
        GrammarSource("lark", 'start: %json {"const": 0.10000000000000000001}').to_lark()
    GrammarSource("lark", 'start: %json {"const": 0.1}').to_lark()
