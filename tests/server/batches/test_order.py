"""Lines that share a prefix are sent one after another, in bounded windows."""

from __future__ import annotations

from itertools import pairwise, takewhile

from hypothesis import given
from hypothesis import strategies as st

from server.batches.lines import RequestLine
from server.batches.order import in_prefix_order, prefix_of, windows

prefixes = st.lists(st.text("ab", max_size=6), max_size=12)


def lines(prefixes: list[str], body: bytes = b"") -> list[RequestLine]:
    return [RequestLine(n, "0" * 12, str(n), "/v1/completions", body, text) for n, text in enumerate(prefixes, 1)]


def common(one: str, two: str) -> str:
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))


def shared(texts: list[str]) -> int:
    """What is known of each text from the one before it."""
    return sum(len(common(*pair)) for pair in pairwise(texts))


@given(prefixes, st.randoms())
def test_no_order_shares_more(texts: list[str], random) -> None:
    found = [line.prefix for line in in_prefix_order(lines(texts))]
    other = list(texts)
    random.shuffle(other)
    assert shared(found) >= shared(other)


@given(prefixes, st.integers(1, 5), st.integers(1, 20))
def test_every_line_is_in_one_window_and_no_window_is_too_large(texts: list[str], most: int, num_bytes: int) -> None:
    found = list(windows(lines(texts, b"xx"), most, num_bytes))
    assert sorted(line.number for window in found for line in window) == list(range(1, len(texts) + 1))
    for window in found:
        size = sum(len(line.body) + len(line.prefix) for line in window)
        assert len(window) <= most
        assert size <= num_bytes or len(window) == 1


def chat(*contents: object, **more: object) -> str:
    messages = [{"role": "user", "content": content} for content in contents]
    return prefix_of("/v1/chat/completions", {"model": "m", "messages": messages, **more})


def test_a_longer_conversation_begins_as_the_shorter_one_does() -> None:
    assert chat("a", "b").startswith(chat("a"))
    assert not chat("b").startswith(chat("a"))


def test_the_order_of_a_messages_fields_changes_nothing() -> None:
    body = {"model": "m", "messages": [{"content": "a", "role": "user"}]}
    assert prefix_of("/v1/chat/completions", body) == chat("a")


def test_tools_and_systems_come_before_messages() -> None:
    assert chat("a", tools=[{"x": 1}]).partition("user")[0] == chat("b", tools=[{"x": 1}]).partition("user")[0]
    one, two = ({"system": "s", "messages": [{"role": "user", "content": text}]} for text in "ab")
    assert common(prefix_of("/v1/messages", one), prefix_of("/v1/messages", two)).endswith("user\0")


def test_anything_has_a_prefix() -> None:
    fields = {"/v1/completions": "prompt", "/v1/responses": "input", "/v1/chat/completions": "messages"}
    for prompt in (None, 7, "x", [1, 2], ["a"], [[1], [2]], {"a": 1}, [None, {"content": [None, {"x": 1}]}]):
        for url, field in fields.items():
            assert prefix_of(url, {field: prompt, "model": ["m"]})
    assert prefix_of("/v1/embeddings", {"model": "m", "input": "x"}) == "m\0/v1/embeddings"
