"""A thought with a budget: closed when it is spent, whatever is said; and nothing is asked before that."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.grammars.process import Grammar, GrammarState
from server.text.grammar import GrammarSource
from server.text.reasoning import FOR_EVER, Reasoning
from tests.compiling import COMPILER

START, END, CLOSING = (ord("<"),), tuple(b"/>"), tuple(b"\n/>\n")
DIGITS = GrammarSource("regex", "[0-9]{4}")


def reasoning(budget: int | None, *, is_open: bool = True, start: tuple[int, ...] = START) -> Reasoning:
    return Reasoning(start, END, is_open, budget, CLOSING)


def allowed(state: GrammarState) -> bytes | None:
    bits = state.allowed()
    if bits is None:
        return None
    return bytes(each for each in range(min(8 * len(bits), 256)) if bits[each // 8] >> each % 8 & 1)


def driven(grammar: Grammar, wanted: bytes) -> bytes:
    """What comes of a model that wants to say `wanted`, and says what it must; asked only where it may be of use."""
    state, written = grammar.start(), bytearray()
    num_accepted = 0
    for position, byte in enumerate(wanted):
        if position - num_accepted >= state.num_free_tokens:
            for each in written[num_accepted:]:
                state.accept(each)
            num_accepted = position
            may = allowed(state)
            if may == b"":  # the end is all that is left
                break
            byte = byte if may is None or byte in may else may[0]
        written.append(byte)
    return bytes(written)


@pytest.mark.parametrize(
    ("budget", "is_open", "wanted", "written"),
    [
        (3, True, b"abcdefghij", b"abc\n/>\nhij"),
        (0, True, b"abcdefghij", b"\n/>\nefghij"),
        (1, True, b"abcdefghij", b"a\n/>\nfghij"),
        (3, True, b"ab/>efghij", b"ab/\n/>\nhij"),
        (4, True, b"ab/>efghij", b"ab/>efghij"),
        (9, True, b"ab/>efghij", b"ab/>efghij"),
        (9, True, b"abcdefghij", b"abcdefghi\n"),
        (2, False, b"<abcdefghij", b"<ab\n/>\nghij"),
        (2, False, b"\n<bcdefghij", b"\n<bc\n/>\nhij"),
        (0, False, b"<abcdefghij", b"<\n/>\nefghij"),
        (2, False, b"abcd<fghijk", b"abcd<fghijk"),
        (0, False, b"abcdefghijk", b"abcdefghijk"),
    ],
)
def test_a_reasoning_is_closed_when_its_budget_is_spent(
    budget: int, is_open: bool, wanted: bytes, written: bytes
) -> None:
    assert driven(Grammar(None, reasoning(budget, is_open=is_open)), wanted) == written


def test_a_reasoning_that_several_tokens_open() -> None:
    opened = reasoning(2, is_open=False, start=tuple(b"<t"))
    assert driven(Grammar(None, opened), b"<tabcdefghi") == b"<tab\n/>\nghi"
    assert driven(Grammar(None, opened), b"<xabcdefghi") == b"<xabcdefghi"


@pytest.mark.parametrize("source", [None, DIGITS])
def test_a_call_within_a_reasoning_is_not_cut_off(source: GrammarSource | None) -> None:
    calling = replace(reasoning(5), call_ids=tuple(b"<f>"))
    grammar = Grammar(None, calling) if source is None else COMPILER.compile(source, calling)
    assert driven(grammar, b"ab<f>cdefghijkl") == b"ab<f>cdefghijkl"
    assert driven(grammar, b"abc<f>cdefghijkl")[:8] == b"abc<f\n/>"


@given(st.binary(max_size=24), st.integers(0, 12), st.booleans())
def test_asked_where_it_may_be_of_use_or_at_every_step_it_is_the_same(
    wanted: bytes, budget: int, is_open: bool
) -> None:
    wanted = wanted.translate(bytes(b"<>/ab\n"[i % 6] for i in range(256)))
    grammar = Grammar(None, reasoning(budget, is_open=is_open))
    state, written = grammar.start(), bytearray()
    for byte in wanted:
        may = allowed(state)
        assert may is None or len(may) == 1
        written.append(byte if may is None else may[0])
        state.accept(written[-1])
    assert driven(grammar, wanted) == bytes(written)


def test_how_long_it_is_free() -> None:
    state = Grammar(None, reasoning(5)).start()
    assert state.num_free_tokens == 5
    for byte in b"ab":
        state.accept(byte)
    assert state.num_free_tokens == 3
    for byte in b"/>":
        state.accept(byte)
    assert state.num_free_tokens == FOR_EVER
    assert Grammar(None, reasoning(5, is_open=False)).start().num_free_tokens == 6
    assert COMPILER.compile(DIGITS, reasoning(5)).start().num_free_tokens == 0


@pytest.mark.parametrize(
    ("budget", "is_open", "wanted", "written"),
    [
        (2, True, b"abcdefghijk", b"ab\n/>\n"),
        (2, False, b"<abcdefghijk", b"<ab\n/>\n"),
        (0, False, b"<abcdefghijk", b"<\n/>\n"),
        (8, True, b"ab/>cdefghijk", b"ab/>"),
    ],
)
def test_a_grammar_goes_on_behind_it(budget: int, is_open: bool, wanted: bytes, written: bytes) -> None:
    said = driven(COMPILER.compile(DIGITS, reasoning(budget, is_open=is_open)), wanted)
    assert said.startswith(written)
    assert said[len(written) :].lstrip().isdigit()


def test_white_space_that_the_grammar_does_not_know_is_left_out() -> None:
    strict = COMPILER.compile(GrammarSource.of_choices(("yes", "no")), reasoning(2))
    written = driven(strict, b"abcdefghij")
    assert written[:5] == b"ab\n/>"
    assert written[5:] in (b"yes", b"no")


def test_states_of_one_grammar_are_apart() -> None:
    grammar, source = Grammar(None, reasoning(3)), random.Random(1)
    first, second = grammar.start(), grammar.start()
    for _ in range(3):
        first.accept(source.randrange(97, 122))
    assert (allowed(first), allowed(second)) == (b"\n", None)
