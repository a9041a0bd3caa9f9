"""gpt-oss's answers cut at every place; and through a tokenizer that has their tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.api.interface import TokenEvent
from server.text.events import Finished, ReasoningDelta, TextDelta, ToolCallDelta
from server.text.parsers.chat import ChatParser, build_parser
from server.text.parsers.harmony import TAGS, HarmonyParser
from server.text.parsers.parts import ChatFormat, Start
from server.text.pipeline import ChoicePipeline
from server.text.tokenizer import load_tokenizer
from tests.server.text.parsers.cuts import calls_of, every_cut, parts_of, pieces, text_of
from tests.tiny_tokenizer import write_harmony_tokenizer

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
]
REASONING = "<|channel|>analysis<|message|>Hm, so.<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>It is 4."
HEADER = "<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
BODY = '{"city": "Köln"}'
CALL = f"{HEADER}{BODY}<|call|>"


def split(text: str | list[str], begins: Start = "before", tools: Any = TOOLS) -> tuple[str, str, list[Any]]:
    parts = parts_of(HarmonyParser(tools, begins=begins), [text] if isinstance(text, str) else text)
    return text_of(parts, "reasoning"), text_of(parts, "content"), calls_of(parts)


CALLED = [("weather", BODY)]
CASES: dict[str, tuple[str, str, str, list[Any]]] = {
    "nothing": ("", "", "", []),
    "a thought and an answer": (f"{REASONING}{FINAL}<|return|>", "Hm, so.", "It is 4.", []),
    "its end is a token that says nothing": (f"{REASONING}{FINAL}", "Hm, so.", "It is 4.", []),
    "an answer at once": ("<|channel|>final<|message|>It is 4.<|return|>", "", "It is 4.", []),
    "a thought that is cut off": (REASONING[:-7], "Hm, so.", "", []),
    "a call": (f"{REASONING}{CALL}", "Hm, so.", "", CALLED),
    "a call whose end says nothing": (f"{REASONING}{CALL[:-8]}", "Hm, so.", "", CALLED),
    "a call without a type": (HEADER.replace(" <|constrain|>json", "") + BODY, "", "", CALLED),
    "a call whose recipient is in the role": (
        f" to=functions.weather<|channel|>commentary <|constrain|>json<|message|>{BODY}<|call|>",
        "",
        "",
        CALLED,
    ),
    "words, then a call": (
        f"{REASONING}<|start|>assistant<|channel|>commentary<|message|>I ask.<|end|>{CALL}",
        "Hm, so.",
        "I ask.",
        CALLED,
    ),
    "two calls": (f"{CALL}{CALL}", "", "", CALLED * 2),
    "a call without its last brace": (f"{HEADER}{BODY[:-1]}", "", "", CALLED),
    "a call that breaks off": (f"{HEADER}{BODY[:-3]}", "", f"{HEADER}{BODY[:-3]}", []),
    "what was not offered": (CALL.replace("weather", "other"), "", CALL.replace("weather", "other"), []),
    "more than arguments": (f"{HEADER}{BODY} so<|call|>", "", f"{HEADER}{BODY} so<|call|>", []),
    "raw line ends in a text": (f'{HEADER}{{"city": "a\nb"}}<|call|>', "", "", [("weather", '{"city": "a\\nb"}')]),
    "a tag in a text": (
        f'{HEADER}{{"city": "a <|end|> b"}}<|call|>{FINAL}',
        "",
        "It is 4.",
        [("weather", '{"city": "a <|end|> b"}')],
    ),
    "a call that is none, and then one": (f"{HEADER}[1]<|call|>{CALL}", "", f"{HEADER}[1]<|call|>", CALLED),
    "large numbers": (
        f'{HEADER}{{"city": 1234567890123456789}}<|call|>',
        "",
        "",
        [("weather", '{"city": 1234567890123456789}')],
    ),
    "a call that is none": (f"{HEADER}[1]<|call|>{FINAL}", "", f"{HEADER}[1]<|call|>It is 4.", []),
    "no header": ("It is 4.", "", "It is 4.", []),
    "a message without a channel": ("<|message|>It is 4.<|return|>", "", "It is 4.", []),
    "a header that is cut off": (f"{REASONING}<|start|>assistant<|chan", "Hm, so.", "", []),
    "a header that ends in nothing": (f"<|channel|>analysis<|end|>{FINAL}", "", "It is 4.", []),
    "a message that does not end": (f"<|channel|>analysis<|message|>Hm{FINAL}", "Hm", "It is 4.", []),
    "white space stays": ("<|channel|>final<|message|> 4\n<|return|>", "", " 4\n", []),
    "half a tag is text": ("<|channel|>final<|message|>a <|b| <|end", "", "a <|b| <|end", []),
}


@pytest.mark.parametrize("case", CASES)
def test_an_answer_cut_at_every_place(case: str) -> None:
    text, *expected = CASES[case]
    for cut in every_cut(text):
        assert split(cut) == tuple(expected)


_WORDS = (*TAGS, "analysis", "final", "commentary", " to=functions.weather", "assistant", BODY, "<|", "a", " ", CALL)


@given(pieces(_WORDS), st.sampled_from(["before", "opened", "reasoning", "content"]), st.sampled_from([(), TOOLS]))
def test_any_cut_gives_what_the_whole_gives(cut: tuple[str, list[str]], begins: Start, tools: Any) -> None:
    text, given_pieces = cut
    assert split(given_pieces, begins, tools) == split(list(text), begins, tools) == split(text, begins, tools)


def test_where_the_prompt_left_off() -> None:
    assert split(f" so<|end|>{FINAL}", "reasoning") == (" so", "It is 4.", [])
    assert split(" 4.<|return|>", "content") == ("", " 4.", [])


def test_a_call_is_content_where_no_tools_are_offered() -> None:
    assert split(CALL, tools=()) == ("", CALL, [])


def test_after_the_one_call_that_was_wanted_nothing_follows() -> None:
    parser = HarmonyParser(TOOLS, only_one=True)
    parts = parser.feed(f"{CALL}{CALL}{FINAL}")
    assert parser.done
    assert calls_of(parts) == CALLED


def test_what_is_cut_off_is_not_completed() -> None:
    parser = HarmonyParser(TOOLS)
    parts = [*parser.feed(f"{HEADER}{BODY[:-1]}"), *parser.flush(is_cut=True)]
    assert (text_of(parts, "content"), calls_of(parts)) == (f"{HEADER}{BODY[:-1]}", [])


def test_what_is_settled_goes_out_at_once() -> None:
    parser = HarmonyParser()
    assert [part.text for part in parser.feed("<|channel|>analysis<|message|>Hm")] == ["", "Hm"]
    assert [part.text for part in parser.feed(", so")] == [", so"]


def test_which_parser_it_is() -> None:
    assert isinstance(build_parser(ChatFormat(is_harmony=True)), HarmonyParser)
    assert isinstance(build_parser(ChatFormat(), TOOLS, begins="content"), ChatParser)


# --- a tokenizer that has the tokens


def test_special_tokens_reach_the_parser_and_no_one_else(tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm")
    tokenizer = load_tokenizer(write_harmony_tokenizer(tmp_path))
    assert tokenizer.chat_format == ChatFormat(is_harmony=True)
    assert (tokenizer.chat_format.has_tools, tokenizer.chat_format.has_reasoning) == (True, True)
    assert {name for name in map(tokenizer.token_text, tokenizer.eos_ids) if name in TAGS} == {"<|call|>", "<|return|>"}
    for text, kinds in (
        (f"{REASONING}{FINAL}<|return|>", [("Hm, so.", ReasoningDelta), ("It is 4.", TextDelta)]),
        (f"{REASONING}{CALL}", [("Hm, so.", ReasoningDelta), ("weather", ToolCallDelta)]),
    ):
        ids = tokenizer.encode(text, add_special_tokens=False)
        parser = build_parser(tokenizer.chat_format, TOOLS)
        pipeline = ChoicePipeline(0, tokenizer, (), False, parser)
        events = [TokenEvent(0, token_id) for token_id in ids[:-1]]
        assert ids[-1] in tokenizer.eos_ids
        outputs: list[Any] = [
            out for event in [*events, TokenEvent(0, ids[-1], None, "stop")] for out in pipeline.feed(event)
        ]
        for said, kind in kinds:
            assert (
                "".join(getattr(out, "text", getattr(out, "name", "")) for out in outputs if type(out) is kind) == said
            )
        finished = outputs[-1]
        assert isinstance(finished, Finished)
        assert finished.reason == ("tool_calls" if text.endswith("<|call|>") else "stop")
        assert finished.num_reasoning_tokens is not None
        assert 0 < finished.num_reasoning_tokens < len(ids)
    assert json.loads(outputs[-2].arguments) == {"city": "Köln"}
