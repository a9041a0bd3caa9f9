"""The pocket model's tokenizer: how text is cut, and one rendering of a conversation in two languages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from scripts.pocket.items import Item
from scripts.pocket.tokenizer import (
    EOS,
    LONGEST_TOKEN,
    MARKS,
    SPECIAL,
    VOCAB_SIZE,
    build,
    encode,
    load,
    prompt,
    render,
)

WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Ömsk"}'}}
SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "How many r's are in the word strawberry?"}
THOUGHT = {"role": "assistant", "reasoning_content": "s0 t0 r1", "content": "3"}
TOLD = {"role": "assistant", "content": "It is 你好 3."}
CALLS = {"role": "assistant", "content": None, "tool_calls": (CALL,)}
SAYS_AND_CALLS = {"role": "assistant", "content": "Let me look.", "tool_calls": (CALL, CALL)}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": '{"c": 21}'}


def item(*messages: Mapping[str, Any], tools: bool = False, thinks: bool = True) -> Item:
    return Item(skill="any", messages=messages, tools=(WEATHER,) if tools else (), enable_thinking=thinks)


ITEMS = {
    "plain": item(ASKED, TOLD),
    "system": item(SYSTEM, ASKED, THOUGHT),
    "not thinking": item(SYSTEM, ASKED, TOLD, thinks=False),
    "turns": item(ASKED, THOUGHT, ASKED, TOLD, ASKED, THOUGHT),
    "thought in the content": item(ASKED, {"role": "assistant", "content": "<think>\na\n</think>\n\n3"}, ASKED, TOLD),
    "tools": item(ASKED, CALLS, tools=True),
    "tools and system": item(SYSTEM, ASKED, CALLS, RESULT, TOLD, tools=True),
    "says and calls": item(ASKED, SAYS_AND_CALLS, RESULT, RESULT, TOLD, tools=True, thinks=False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = ["strawberry and Marlow, straw 9.11 你好世界\n"] * 20 + [t for i in ITEMS.values() for t, _ in render(i)]
    build(folder, texts)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load(folder)


@pytest.fixture(scope="module")
def transformers_tokenizer(folder: Path) -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """Between which no two characters are ever one token."""
    return [text[slice(*span)] for _, span in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


# --- how text is cut


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("s0 t0 r1", "s|0| |t|0| |r|1"),
        ("s-t-r", "s|-|t|-|r"),
        ("9.11", "9|.|1|1"),
        ("QZ7", "Q|Z|7"),
        ("in the word strawberry", "in| the| word| |s|t|r|a|w|b|e|r|r|y"),
        ("\n\n\n", "\n|\n|\n"),
        ('{"a": "Bo", "n": 12}', '{"|a|": "|B|o|", "|n|": |1|2|}'),
        ("What letter is it?", "What| letter| is| it|?"),
        ("whatever is here", "w|h|a|t|e|v|e|r| is| here"),
        (' Paris "Paris"', ' |Paris| |"|Paris|"'),
        ("你好。a", "你|好|。|a"),
    ],
)
def test_text_is_cut_where_the_model_has_to_see_it(tokenizer: Tokenizer, text: str, cut: str) -> None:
    assert pieces(tokenizer, text) == cut.split("|")


@pytest.mark.parametrize("word", ["Marlow", "strawberry", "zebrafish"])
@pytest.mark.parametrize("before", [" ", '"', "\n", "-", ": "])
def test_a_word_is_the_same_tokens_wherever_it_stands(tokenizer: Tokenizer, word: str, before: str) -> None:
    alone = tokenizer.encode(word).ids
    assert tokenizer.encode(before + word + "?").ids[-len(alone) - 1 : -1] == alone


@pytest.mark.parametrize("text", ["", " ", "Ünïcode 🙂 \t\r\n", '{"a": [1, {"b": ""}]}', "<think>\n你好\n</think>"])
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_vocabulary_keeps_its_bounds(tokenizer: Tokenizer) -> None:
    vocabulary = tokenizer.get_vocab()
    assert [vocabulary[token] for token in (*SPECIAL, *MARKS)] == list(range(7))
    assert max(vocabulary.values()) < VOCAB_SIZE
    assert max(len(token) for token in vocabulary.keys() - {*SPECIAL, *MARKS}) <= LONGEST_TOKEN


# --- the chat template


@pytest.mark.parametrize("name", ITEMS)
def test_the_template_and_render_write_the_same(transformers_tokenizer: Any, name: str) -> None:
    given = ITEMS[name]
    text = transformers_tokenizer.apply_chat_template(
        list(given.messages), tools=list(given.tools) or None, tokenize=False
    )
    if given.enable_thinking:
        assert text == "".join(text for text, _ in render(given))
    prompted = transformers_tokenizer.apply_chat_template(
        list(given.messages[:-1]),
        tools=list(given.tools) or None,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=given.enable_thinking,
    )
    assert prompted == prompt(given)


@pytest.mark.parametrize("name", ITEMS)
def test_what_is_rendered_starts_with_the_prompt(name: str) -> None:
    given = ITEMS[name]
    assert "".join(text for text, _ in render(given)).startswith(prompt(given))


def test_the_model_learns_to_write_its_turn_to_the_end() -> None:
    trained = [text for text, is_trained in render(ITEMS["turns"]) if is_trained]
    thought, told = f"<think>\ns0 t0 r1\n</think>\n\n3{EOS}", f"<think>\n\n</think>\n\nIt is 你好 3.{EOS}"
    assert trained == [thought, told, thought]


def test_an_empty_thought_that_the_prompt_brings_is_not_learned() -> None:
    assert [text for text, is_trained in render(ITEMS["not thinking"]) if is_trained] == [f"It is 你好 3.{EOS}"]


@pytest.mark.parametrize("name", ITEMS)
def test_ids_are_those_of_the_whole_text(tokenizer: Tokenizer, name: str) -> None:
    ids, trained = encode(tokenizer, ITEMS[name])
    assert ids == tokenizer.encode("".join(text for text, _ in render(ITEMS[name]))).ids
    assert len(trained) == len(ids)
    learned = [token_id for token_id, is_trained in zip(ids, trained, strict=True) if is_trained]
    assert learned == [i for text, is_trained in render(ITEMS[name]) if is_trained for i in tokenizer.encode(text).ids]


def test_mlx_lm_recognises_thinking_and_tool_calls(folder: Path) -> None:
    utils = pytest.importorskip("mlx_lm.tokenizer_utils")
    wrapper = utils.load(folder)
    assert (wrapper.think_start, wrapper.think_end) == ("<think>", "</think>")
    assert (wrapper.tool_call_start, wrapper.tool_call_end) == ("<tool_call>", "</tool_call>")
    (text,) = [text for text, is_trained in render(ITEMS["tools"]) if is_trained]
    written = text.partition("<tool_call>")[2].partition("</tool_call>")[0]
    assert wrapper.tool_parser(written, None) == {"name": "get_weather", "arguments": {"city": "Ömsk"}}
    assert wrapper.decode(wrapper.encode("<think>a</think>"), skip_special_tokens=True) == "<think>a</think>"
