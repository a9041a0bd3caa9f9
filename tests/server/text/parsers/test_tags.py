"""Tags found in what has come so far."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.parsers.tags import TagSet, find_tag


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


@given(text=st.text("ab", max_size=12), tags=st.lists(st.text("ab", min_size=1, max_size=4), max_size=4))
def test_a_set_of_tags_finds_what_each_alone_would(text, tags):
    found = TagSet(tags).find(text, 0)
    assert (found is None) == (not any(tag in text for tag in tags))
    if found is not None:
        place, tag = found
        assert text.startswith(tag, place)
        assert tag in tags
        assert not any(text.startswith(other, earlier) for other in tags for earlier in range(place))
    half = TagSet(tags).half_at(text, 0)
    begun = [place for place in range(len(text)) if any(tag.startswith(text[place:]) for tag in tags)]
    assert half in (*begun, len(text))


def test_halves_of_a_set():
    tags = TagSet(["<think>", "<tool>", "{"])
    assert tags.half_at("a <to", 0) == 2
    assert tags.half_at("a <to", 3) == 5
    assert tags.half_at("a <x", 0) == 4
    assert tags.find("a { <tool>", 3) == (4, "<tool>")
