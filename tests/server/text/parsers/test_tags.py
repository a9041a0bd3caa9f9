"""Tags found in what has come so far."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.parsers.tags import find_tag, without_cut_tag


@pytest.mark.parametrize(
    ("text", "tags", "found"),
    [
        ("", ("<a>",), (0, None)),
        ("xy", ("<a>",), (2, None)),
        ("x<", ("<a>",), (1, None)),
        ("x<<a", ("<a>",), (2, None)),
        ("x<b", ("<a>",), (3, None)),
        ("x<a>y<a>", ("<a>",), (1, "<a>")),
        ("x<b><a>", ("<a>", "<b>"), (1, "<b>")),
        ("abc", ("abc", "b"), (1, "b")),
        ("xab", ("b", "ab"), (1, "ab")),
        ("<a>", (), (3, None)),
    ],
)
def test_the_first_to_be_complete_or_where_one_may_begin(text, tags, found):
    assert find_tag(text, tags) == found


def test_nothing_is_looked_for_before_the_start():
    assert find_tag("<a>x<a>", ("<a>",), 1) == (4, "<a>")
    assert find_tag("<a", ("<a>",), 1) == (2, None)


@given(text=st.text("ab", max_size=12), tags=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_what_is_given_out_is_never_a_part_of_a_tag(text, tags):
    found = next(
        (find_tag(text[:end], tags) for end in range(len(text) + 1) if find_tag(text[:end], tags)[1]), None
    )  # the first tag that is complete while the text grows
    if found is not None:
        assert find_tag(text, tags) == found
    for end in range(len(text) + 1):
        place, tag = find_tag(text[:end], tags)
        if tag is None and found is not None:
            assert place <= found[0]


@pytest.mark.parametrize(
    ("text", "cut", "left"),
    [
        ("x<th", "ink>", "x"),
        ("x<th", "i", "x"),
        ("x<th", "ink> and more", "x"),
        ("x<th", "e", "x<th"),
        ("x<th", "", "x<th"),
        ("x", "<think>", "x"),
    ],
)
def test_half_a_tag_that_was_cut_off_is_none(text, cut, left):
    assert without_cut_tag(text, cut, ("<think>",)) == left
