"""Volatile lines: which are known, where they go, and that nothing else of a conversation changes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.volatile import ROWS, settle, with_reminders

USER = {"role": "user", "content": "Hello"}
BILLING = "x-anthropic-billing-header: cc_version=2.1; cch=af31;"
CLOCKS = [
    "Current time is 01:10:00.",
    "Current Time: 2026-11-28 01:10:00.123456+00:00",
    "The current date and time is Saturday, November 28, 2026 at 1:10 AM.",
    "Now: Sat Nov 28 2026 01:10:00 GMT+0000 (Coordinated Universal Time)",
    "It is currently 10:45 PM CET on Saturday.",
    "Today is Saturday, 28 November 2026, 10:45",
    "The current date is 2026-11-28T01:10:00.000-05:00",
    "Current time (UTC): 2026-11-28 01:10 UTC",
    "<current_time>2026-11-28T01:10:00Z</current_time>",
    "**Current time:** 10:45 (Europe/Berlin)",
    "Timestamp: 1764292200",
    "Aktuelle Uhrzeit: 10:45 Uhr",
    "当前时间\uff1a2026-11-28 01:10:00",
]
BUDGETS = [
    "Token usage: 35000/1000000; 965000 remaining",
    "<system_warning>Token usage: 35000/1000000; 965000 remaining</system_warning>",
    "You have 12,345 tokens left.",
    "Context left: 45%",
    "10% context left until auto-compact",
    "Steps remaining: 4",
]
STAYING = [
    "<env>\n  Working directory: /x\n  Today's date: Sat Nov 28 2026\n</env>",
    "Today's date is 2026-11-28.",
    "The current date is 2026-11-28. Be brief.",
    "gitStatus: This is the git status at the start of the conversation.\n M a.py",
    "Current time: 10:45 and you should greet the user.",
    "Before the current time is 10:45 say nothing.",
    "Office hours are 10:00 to 12:00. Today's meeting is at Anna's: 10:30",
    "Example one.\nCurrent time: 10:45\nExample two.\nCurrent time: 10:46",
    "```\nCurrent time: 10:45\n```",
    "You have 3 messages. Nothing is left.",
    "When 10% context is left, say so.",
    "Context window: 200000 tokens",
    f"The header begins with {BILLING}",
]
TEXT = st.lists(st.sampled_from([*CLOCKS, *BUDGETS, *STAYING, BILLING, "Be kind.", "", "  - "]) | st.text(), max_size=6)


def told(text: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": text}, USER]


@pytest.mark.parametrize("line", [*CLOCKS, *BUDGETS])
@pytest.mark.parametrize("text", ["{}\nBe kind.", "Be kind.\n- {}\n", "You help.\n\n  {}\n\nBe kind."])
def test_a_volatile_line_goes_behind_the_last_message(text: str, line: str) -> None:
    settled = settle(told(text.format(line)))
    kind = "clock" if line in CLOCKS else "budget-left"
    assert settled.fates == ((kind, "moved"),)
    assert settled.reminders == (line,)
    assert line not in settled.messages[0]["content"]
    assert "Be kind." in settled.messages[0]["content"]
    (*_, last) = with_reminders(settled.messages, settled.reminders)
    assert last == {"role": "user", "content": f"Hello\n\n<system-reminder>\n{line}\n</system-reminder>"}


@pytest.mark.parametrize("text", STAYING)
def test_a_line_that_is_the_same_all_day_or_says_more_stays(text: str) -> None:
    settled = settle(told(text))
    assert (settled.messages, settled.reminders, settled.fates) == (tuple(told(text)), (), ())


def test_a_sentence_is_taken_out_of_its_line() -> None:
    settled = settle(told("Current time is 01:10:00. Today's date is 2026-11-28.\nYou have 9 turns left. Be kind."))
    assert settled.messages[0]["content"] == "Today's date is 2026-11-28.\nBe kind."
    assert settled.reminders == ("Current time is 01:10:00.", "You have 9 turns left.")
    assert settled.fates == (("clock", "moved"), ("budget-left", "moved"))


@pytest.mark.parametrize(
    ("text", "left"), [(f"{BILLING}\nBe kind.", "Be kind."), (f"You help.\n{BILLING}", "You help.\n"), (BILLING, None)]
)
def test_a_billing_line_is_dropped(text: str, left: str | None) -> None:
    settled = settle(told(text))
    assert settled.messages == ((USER,) if left is None else ({"role": "system", "content": left}, USER))
    assert (settled.reminders, settled.fates) == ((), (("billing-header", "dropped"),))


def test_messages_after_the_system_prompt_are_repeated_word_for_word_and_stay() -> None:
    clock = "Current time is 01:10:00."
    talk = [USER, {"role": "system", "content": clock}, {"role": "user", "content": clock}]
    assert settle(talk).messages == tuple(talk)


def test_without_a_message_to_stand_behind_a_clock_stays() -> None:
    talk = [{"role": "system", "content": CLOCKS[0]}, {"role": "assistant", "content": "It"}]
    assert settle(talk).messages == tuple(talk)
    assert settle([{"role": "system", "content": BILLING}]).fates == ()


@pytest.mark.parametrize(
    ("roles", "place"),
    [(["user", "assistant", "tool"], 2), (["user", "assistant"], 0), (["user", "tool", "user", "assistant"], 2)],
)
def test_the_place_of_reminders(roles: list[str], place: int) -> None:
    talk = [{"role": role, "content": None if role == "tool" else role} for role in roles]
    found = with_reminders(talk, ["now"])
    assert [at for at, (old, new) in enumerate(zip(talk, found, strict=True)) if old != new] == [place]
    assert str(found[place]["content"]).endswith("<system-reminder>\nnow\n</system-reminder>")


def test_a_system_prompt_that_is_too_long_stays() -> None:
    talk = told(f"{CLOCKS[0]}\n" + "x" * 400_000)
    assert settle(talk).messages == tuple(talk)


@pytest.mark.parametrize("text", ["now is 10:45. " * 9, "now: 10:45 AM. " * 9, "(10:45" * 9, "now" + " " * 99])
def test_many_hits_are_data_and_stay(text: str) -> None:
    assert settle(told(text)).fates == ()


@given(TEXT, TEXT)
def test_nothing_is_lost_but_billing_lines(first: list[str], second: list[str]) -> None:
    talk = [{"role": "system", "content": "\n".join(first)}, {"role": "system", "content": " ".join(second)}, USER]
    settled = settle(talk)
    lines = [line for message in talk for line in str(message["content"]).splitlines() if line.startswith(BILLING[:27])]
    dropped = lines if ("billing-header", "dropped") in settled.fates else []

    def letters(*texts: str) -> Counter[str]:
        return Counter(letter for text in texts for letter in text if letter.isalnum())

    said = [str(message["content"]) for message in settled.messages]
    assert letters(*said, *settled.reminders, *dropped) == letters(*(str(message["content"]) for message in talk))
    assert settled.messages[-1] == USER
    assert not settled.fates or settle(settled.messages).messages[-1] == USER


@given(st.lists(st.tuples(st.integers(0, 23), st.integers(0, 59)), min_size=2, max_size=2), TEXT.filter(bool))
def test_prompts_of_two_minutes_begin_alike(times: list[tuple[int, int]], others: list[str]) -> None:
    """Unless what else is said has a clock, too."""
    if any(row.trigger.search("\n".join(others)) for row in ROWS):
        return
    found = [
        settle(told("\n".join([*others[:-1], f"Current time is {hour:02}:{minute:02}:00.", *others[-1:]])))
        for hour, minute in times
    ]
    if all(settled.fates for settled in found):
        assert found[0].messages == found[1].messages
    else:
        assert any("```" in text or "~~~" in text for text in others)
