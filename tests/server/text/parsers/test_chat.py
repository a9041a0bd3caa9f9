"""Reasoning, calls and content together, wherever the text is cut."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.calls.form import CallForm
from server.text.detokenizer import CONTROL_MARK
from server.text.parsers.chat import ChatParser, RawText, opens_reasoning
from server.text.parsers.parts import ChatFormat, ReasoningHabit, Start
from tests.server.text.calls.test_splitting import GOOD, TOOLS
from tests.server.text.parsers.cuts import calls_of, every_cut, parts_of, pieces, text_of

FORM = CallForm(start="<tool>", end="</tool>", inside=("<arg>",))


def format_with(**changes: Any) -> ChatFormat:
    """A format with a habit of its own, or with one that holds nothing back."""
    return ChatFormat(**{"think_start": "<think>", "think_end": "</think>", "calls": FORM, **changes})


def plain() -> ReasoningHabit:
    """Of a model whose first answers were no thoughts."""
    habit = ReasoningHabit()
    for _ in range(2):
        habit.note_plain()
    return habit


FORMAT = format_with(habit=plain())
CALL = f"<tool>{GOOD}</tool>"
_WORDS = ("<think>", "</think>", "<tool>", "</tool>", GOOD, CALL, "<", "</t", "<t", " ", "\n", "a", "a.", "`")


def everything(parser: ChatParser, cut: list[str]) -> tuple[str, str, list[tuple[str, str]]]:
    parts = parts_of(parser, cut)
    return text_of(parts, "reasoning"), text_of(parts, "content"), calls_of(parts)


@given(
    cut=pieces(_WORDS),
    begins=st.sampled_from(["before", "opened", "reasoning", "content"]),
    tools=st.sampled_from([(), TOOLS]),
    is_new=st.booleans(),
)
def test_any_cut_gives_what_the_whole_gives(cut, begins, tools, is_new):
    def parser() -> ChatParser:
        return ChatParser(format_with() if is_new else FORMAT, tools, begins=begins)

    text, given_pieces = cut
    whole = everything(parser(), [text])
    assert everything(parser(), given_pieces) == whole
    assert everything(parser(), list(text)) == whole


@given(cut=pieces(("<think>", "</think>", " ", "\n", "a", "b.", "`")))
def test_no_word_is_lost(cut):
    """Of a model that thinks, only tags and white space are in neither text."""
    text, given_pieces = cut
    parts = parts_of(ChatParser(format_with()), given_pieces)
    said = "".join(part.text for part in parts)
    bare = re.sub(r"\s", "", text)
    left = re.sub(r"\s", "", said)
    assert sorted(left.replace("<think>", "").replace("</think>", "")) == sorted(
        bare.replace("<think>", "").replace("</think>", "")
    )


def test_an_output_that_goes_on_where_the_prompt_left_off():
    """Its first white space is of the text."""
    thought = everything(ChatParser(FORMAT, (), begins="reasoning"), [" so</think> 4"])
    assert thought == (" so", "4", [])
    assert everything(ChatParser(FORMAT, (), begins="content"), [" and on"]) == ("", " and on", [])


F = ("f", '{"a": 1}')
REASONING: dict[str, tuple[str, Start, str, str]] = {
    "a thought": ("<think>\nhm, 2 + 2\n</think>\n\n4 is it.", "before", "hm, 2 + 2", "4 is it."),
    "opened by the prompt": ("\nhm\n</think>\n\n4", "opened", "hm", "4"),
    "opened by both": ("<think>\nhm\n</think>\n\n4", "opened", "hm", "4"),
    "never closed": ("<think>\nhm and hm\n", "before", "hm and hm", ""),
    "opened by the prompt and never closed": ("hm and hm </thin", "opened", "hm and hm </thin", ""),
    "an empty thought": ("<think>\n\n</think>\n\n4", "before", "", "4"),
    "an empty thought, then a real one": ("<think></think>\n\n<think>hm</think>4", "before", "hm", "4"),
    "an empty thought, then one that is not opened": ("<think>\n</think>\n\nhm\n</think>\n\n4", "before", "hm", "4"),
    "nothing but a thought": ("<think>hm</think>\n", "before", "hm", ""),
    "two thoughts": ("<think>a </think>\n<think> b</think> c", "before", "a\n\nb", "c"),
    "a second thought after text": ("<think>a</think>So.\n\n<think>b</think>\n\n4", "before", "a\n\nb", "So.\n\n4"),
    "a second thought behind a sentence": ("So. <think>b</think> 4", "before", "b", "So. 4"),
    "a thought after text": ("So.\n<think>\nb\n</think>\n4", "before", "b", "So.\n4"),
    "a thought where the prompt has closed one": ("<think>hm</think>4", "content", "hm", "4"),
    "no thought": (" 4 < 5\n", "before", "", " 4 < 5\n"),
    "tags that are spoken of": ("Write <think> and </think>.", "before", "", "Write <think> and </think>."),
    "tags in quotes": ("Write `<think>`, then `</think>`", "before", "", "Write `<think>`, then `</think>`"),
    "no opening tag": ("Okay, I add 2 and 2.\n</think>\n\n4", "before", "Okay, I add 2 and 2.", "4"),
    "no opening tag in a line": ("Okay.</think>4", "before", "Okay.", "4"),
    "a closing tag where the prompt has closed the thought": ("So.\n</think>\n\n4", "content", "", "So.\n4"),
    "a closing tag more": ("<think>a</think>So.\n</think>\n\n4", "before", "a", "So.\n4"),
    "half a tag": ("<think", "before", "", "<think"),
    "nothing": ("", "before", "", ""),
    "nothing, opened": ("", "opened", "", ""),
}


@pytest.mark.parametrize("case", REASONING)
def test_reasoning_cut_at_every_place(case):
    text, begins, reasoning, content = REASONING[case]
    for cut in every_cut(text):
        for tools in ((), TOOLS):
            assert everything(ChatParser(format_with(), tools, begins=begins), cut) == (reasoning, content, [])


def test_text_goes_out_as_soon_as_it_is_known():
    parser = ChatParser(FORMAT)
    assert [text_of(parser.feed(text), "reasoning") for text in ("<think>", "\n", "a", " ", "b", "<", "i")] == [
        *("", "", "a", "", " b", "", "<i")
    ]
    parser.feed("</think>\n")
    assert [text_of(parser.feed(text), "content") for text in ("\n", "c ", "\n", "d")] == ["", "c ", "\n", "d"]


def test_a_model_is_known_by_its_first_answers():
    """Held back is the beginning of the first answers alone; a thought without opening tag is remembered."""
    format = format_with()
    for _ in range(2):
        assert text_of(ChatParser(format).feed("It is 4."), "content") == ""
        assert text_of(parts_of(ChatParser(format), ["It is 4."]), "content") == "It is 4."
    assert text_of(ChatParser(format).feed("It is 4."), "content") == "It is 4."
    format = format_with()
    assert text_of(ChatParser(format).feed("It is 4. " * 100), "content") == "It is 4. " * 100
    assert everything(ChatParser(format), ["Okay.\n</think>\n\n4"]) == ("Okay.", "4", [])
    assert text_of(ChatParser(format).feed("Okay, so"), "reasoning") == "Okay, so"
    assert text_of(ChatParser(format, begins="content").feed("It is 4."), "content") == "It is 4."


CASES = {
    "thought, text and call": (f"<think>\nhm\n</think>\n\nI ask.\n{CALL}", ("hm", "I ask.", [F])),
    "thought and call": (f"<think>\nhm\n</think>\n\n{CALL}\n{CALL}\n", ("hm", "", [F, F])),
    "a call that ends a thought": (f"<think>hm\n{CALL} so", ("hm", "so", [F])),
    "a call in a thought that is closed": (f"<think>hm\n{CALL}\n</think>\n\nso", ("hm", "so", [F])),
    "a thought after a call": (f"<think>a</think>{CALL}\n<think>b</think>\nso", ("a\n\nb", "so", [F])),
    "no thought": (f"a {CALL}", ("", "a", [F])),
    "no opening tag": (f"hm\n</think>\n\n{CALL}", ("hm", "", [F])),
    "what is no call is of the thought": ("<think>hm <tool>x</tool>y", ("hm <tool>x</tool>y", "", [])),
    "a tag that is spoken of in a thought": (f"<think>a <tool> it is</think>{CALL}", ("a <tool> it is", "", [F])),
}


@pytest.mark.parametrize("case", CASES)
def test_cases_cut_at_every_place(case):
    text, result = CASES[case]
    for cut in every_cut(text):
        assert everything(ChatParser(format_with(), TOOLS), cut) == result


def test_frames_are_no_part_of_content():
    format = format_with(frames=("<r>", "</r>"))
    for cut in every_cut(f"<think>hm</think><r>It is 4.</r>{CALL}"):
        assert everything(ChatParser(format, TOOLS), cut) == ("hm", "It is 4.", [F])


def test_without_tools_a_call_is_text_and_without_reasoning_a_reasoning_is():
    text = f"<think>a {CALL}</think>{CALL}"
    assert everything(ChatParser(FORMAT), [text]) == (f"a {CALL}", CALL, [])
    assert everything(ChatParser(ChatFormat(), TOOLS), [text]) == ("", text, [])


def test_the_last_part_says_where_the_output_ended():
    def last(text: str) -> str:
        parser = ChatParser(FORMAT, TOOLS)
        parser.feed(text)
        return parser.flush()[-1].kind

    assert [last(text) for text in ("", "a", "<think>", "<think>a", "<think>a</think>", f"a{CALL}")] == [
        *("content", "content", "reasoning", "reasoning", "reasoning", "call")
    ]


def test_markup_is_what_has_to_be_seen():
    tags = {"<think>", "</think>", "<tool>", "</tool>", "<arg>", CONTROL_MARK}
    assert set(ChatParser(FORMAT, TOOLS).markup) == tags
    assert set(ChatParser(FORMAT).markup) == {"<think>", "</think>"}
    assert ChatParser(ChatFormat(), TOOLS).markup == RawText().markup == ()


def test_it_is_done_after_the_one_call_that_was_wanted():
    for only_one in (False, True):
        parser = ChatParser(FORMAT, TOOLS, only_one=only_one)
        parser.feed(CALL)
        assert parser.done is only_one


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [
        ("<|assistant|><think>", True),
        ("<|assistant|><think>\n\n", True),
        ("<|assistant|><think>\n\n</think>\n\n", False),
        ("what is <think>?<|assistant|>", False),
        ("", False),
    ],
)
def test_a_prompt_that_ends_in_an_open_reasoning(prompt, is_open):
    assert opens_reasoning(FORMAT, prompt) is is_open
    assert not opens_reasoning(ChatFormat(), prompt)


def test_raw_text_is_content():
    parts = parts_of(RawText(), ["a<think>", "", f"b{CALL}"])
    assert text_of(parts, "content") == f"a<think>b{CALL}"


def answered(habit: ReasoningHabit, text: str, *, is_cut: bool = False) -> None:
    parser = ChatParser(format_with(habit=habit))
    parser.feed(text)
    parser.flush(is_cut=is_cut)


def test_what_the_first_answers_show_of_a_model() -> None:
    habit = ReasoningHabit()
    assert habit.num_held > 0
    answered(habit, "cut", is_cut=True)
    answered(habit, "one")
    assert habit.num_held > 0
    answered(habit, "two")
    assert habit.num_held == 0
    habit = ReasoningHabit()
    answered(habit, "<think>hm</think>so")
    assert (habit.num_held, habit.is_unopened) == (0, False)
    habit = ReasoningHabit()
    answered(habit, "hm</think>so")
    assert habit.is_unopened


def test_a_tag_within_a_longer_one_waits_for_it() -> None:
    format = format_with(think_start="[[<tool>]]", think_end="[[/]]", habit=plain())
    for text, reasoning in (("[[<tool>]]hm[[/]]so", "hm"), (f"[[{CALL}", "")):
        found = [everything(ChatParser(format, TOOLS), cut) for cut in every_cut(text)]
        assert all(each == found[0] for each in found)
        assert found[0][0] == reasoning
