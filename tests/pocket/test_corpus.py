"""The corpus: every reference answer is right, wrong ones are not, the splits share nothing, a seed says all."""

# ruff: noqa: RUF001, RUF003 - × is meant

from __future__ import annotations

import json
import re
from itertools import islice, pairwise
from random import Random

import pytest

from scripts.pocket.corpus import SKILLS, approximate_length, generate, stream
from scripts.pocket.items import Item, Split
from scripts.pocket.skills import arithmetic, chat, decimals, letters, recall
from scripts.pocket.skills.base import Draw, split_of


def written(item: Item) -> str:
    """The last message as a model writes it, without its thought."""
    last = item.messages[-1]
    calls = [json.dumps(call["function"]) for call in last.get("tool_calls", ())]
    return str(last["content"]) + "".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


def is_right(item: Item, text: str) -> bool:
    assert item.is_right is not None
    return item.is_right(text)


def some(skill: str, count: int = 100, split: Split = "train", **options) -> list[Item]:
    rng = Random(7)
    return [generate(skill, split, rng, **options) for _ in range(count)]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("skill", SKILLS)
def test_the_reference_answer_is_right_and_others_are_not(skill, split):
    for item in some(skill, split=split):
        assert item.skill == skill
        assert is_right(item, written(item)), item
        assert not is_right(item, "Something else, 123456789.")
        assert not is_right(item, "")


@pytest.mark.parametrize("skill", SKILLS)
def test_conversations_have_the_form_of_a_chat(skill):
    for item in some(skill):
        roles = [message["role"] for message in item.messages]
        assert roles[-1] == "assistant"
        turns = "".join({"system": "s", "user": "u", "assistant": "a", "tool": "t"}[role] for role in roles)
        assert re.fullmatch(r"s?(u(at)?a)+", turns)


@pytest.mark.parametrize("skill", SKILLS)
def test_the_switch_takes_the_reasoning_away(skill):
    for item in some(skill, thinking=False):
        assert not item.enable_thinking
        assert not any("reasoning_content" in message for message in item.messages)
    assert all(item.enable_thinking for item in some(skill, thinking=True))


def test_an_answer_of_another_item_is_hardly_ever_right():
    for skill in ("letters", "arithmetic", "decimals", "json_answer", "recall", "lists"):
        items = some(skill)
        taken = sum(is_right(one, written(other)) for one, other in pairwise(items))
        assert taken < 20, skill  # counts of letters are alike now and then


def test_the_stream_is_the_same_for_a_seed_and_another_for_another():
    def first(seed: int) -> list[tuple]:
        return [item.messages for item in islice(stream("train", seed), 50)]

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_the_stream_holds_every_skill_and_only_those_with_a_weight():
    assert {item.skill for item in islice(stream("train", 0), 1000)} == set(SKILLS)
    assert {item.skill for item in islice(stream("train", 0, {"lists": 1.0}), 20)} == {"lists"}


def test_the_stream_leaves_out_what_is_too_long():
    items = list(islice(stream("train", 0, recall_tokens=(30, 2000), max_context_tokens=300), 300))
    assert max(map(approximate_length, items)) <= 300
    assert "recall" in {item.skill for item in items}


# --- the splits


def questions(split: Split, skill: str) -> set[str]:
    return {str(item.messages[:-1]) for item in some(skill, 400, split)}


@pytest.mark.parametrize("skill", SKILLS)
def test_train_and_test_share_no_question(skill):
    assert not questions("train", skill) & questions("test", skill)


def test_material_of_both_splits_is_drawn():
    for split in ("train", "test"):
        draw = Draw(split, Random(1))
        drawn = [draw.word(), draw.name(), draw.code(), arithmetic.material(arithmetic.draw_sum(draw))]
        assert {split_of(material) for material in drawn} == {split}


def test_what_everyone_tries_first_is_never_trained_on():
    assert split_of("Strawberry") == "test"
    assert split_of(decimals.material(("9.8", "9.11"))) == split_of(decimals.material(("9.11", "9.8"))) == "test"


def test_both_orders_of_a_sum_are_one_material():
    assert arithmetic.material((47, "+", 85)) == arithmetic.material((85, "+", 47))


# --- the skills


def test_letters_of_strawberry():
    item = generate("letters", "test", Random(0), word="strawberry", letter="r", thinking=True)
    assert item.messages[-1] == {
        "role": "assistant",
        "content": "There are 3 r's in strawberry.",
        "reasoning_content": "r: s0 t0 r1 a1 w1 b1 e1 r2 r3 y3",
    }
    assert is_right(item, "I count: There are 3 of them.")
    assert not is_right(item, "There are 3? No. There are 2 r's in strawberry.")


@pytest.mark.parametrize(("letter", "answer"), [("z", "There are no z's in tree."), ("t", "There is 1 t in tree.")])
def test_letters_that_are_not_there_or_once(letter, answer):
    item = generate("letters", "train", Random(0), word="tree", letter=letter)
    assert item.messages[-1]["content"] == answer
    assert is_right(item, answer)


def test_letters_come_in_a_word_of_up_to_twelve():
    draw = Draw("train", Random(0))
    assert {len(draw.word()) for _ in range(2000)} == set(range(3, 13))
    assert letters.running_length("pear") == "length: p1 e2 a3 r4"


@pytest.mark.parametrize(
    ("a", "b", "reasoning"),
    [
        ("9.8", "9.11", "9.80 vs 9.11: 9=9, 8>1"),
        ("9.80", "9.8", "9.80 vs 9.80: 9=9, 8=8, 0=0"),
        ("12", "9.5", "12.0 vs 09.5: 1>0"),
    ],
)
def test_decimals_are_compared_digit_by_digit(a, b, reasoning):
    assert decimals.comparison(a, b) == reasoning


def test_decimals_agree_with_numbers():
    for item in some("decimals", 300):
        question, answer = item.messages[0]["content"], item.messages[-1]["content"]
        a, b = map(float, re.findall(r"\d+(?:\.\d+)?", question))
        first = float(re.findall(r"\d+(?:\.\d+)?", answer)[0])
        assert first == (min(a, b) if "smaller" in answer else max(a, b))


@pytest.mark.parametrize(
    ("operation", "reasoning"),
    [
        ((47, "+", 85), "7+5+0=12 2\n4+8+1=13 32\n0+0+1=01 132"),
        ((132, "-", 85), "2-5-0=-3 7\n3-8-1=-6 47\n1-0-1=0 047"),
        ((5, "-", 9), "5<9\n9-5-0=4 4"),
        ((7, "×", 38), "8*7+0=56 6\n3*7+5=26 66\n0*7+2=02 266"),
    ],
)
def test_arithmetic_by_digits(operation, reasoning):
    assert arithmetic.steps(*operation) == reasoning


def test_arithmetic_steps_end_in_the_result():
    draw = Draw("train", Random(3))
    for _ in range(500):
        a, sign, b = arithmetic.draw_sum(draw)
        last = arithmetic.steps(a, sign, b).splitlines()[-1].split()[-1]
        assert int(last) == abs(arithmetic.value(a, sign, b))


def keys(text: str) -> list[tuple[str, str]]:
    return re.findall(r"The (\w+) for (\w+) is", text)


@pytest.mark.parametrize("size", [128, 256, 1024, 4000])
def test_recall_is_about_as_long_as_asked_and_answerable(size):
    for item in some("recall", 5, context_tokens=size, questions=1):
        assert 0.7 * size < approximate_length(item) < 1.1 * size
        context = "\n".join(message["content"] for message in item.messages[:-1])
        found = keys(context)
        assert len(found) == len(set(found))
        value = item.messages[-1]["content"].rstrip(".").split()[-1]
        assert re.search(rf"\b{value}\b", context)


def test_recall_uses_the_measure_it_is_given():
    (item,) = some("recall", 1, context_tokens=1000, questions=1, measure=len)
    assert 500 < len(item.messages[-2]["content"]) + len(item.messages[0]["content"]) < 2100


@pytest.mark.parametrize(("position", "place"), [(0.0, 0), (1.0, -1)])
def test_recall_asks_at_the_position(position, place):
    found = some("recall", 40, context_tokens=300, questions=1, position=position, things=("code",))
    said = [item for item in found if keys(item.messages[0]["content"])]
    assert said
    for item in said:
        assert keys(item.messages[0]["content"])[place] == keys(item.messages[-1]["content"])[0]


def test_recall_asks_several_things_in_training_and_one_in_test():
    def asked(split: Split) -> set[int]:
        items = some("recall", 30, split, context_tokens=600)
        return {sum(message["role"] == "assistant" for message in item.messages) for item in items}

    assert asked("test") == {1}
    assert max(asked("train")) > 3


def test_recall_does_not_take_a_code_for_part_of_another():
    fact = recall.said(("code", "Maria", "7319"))
    item = generate("recall", "train", Random(0), context_tokens=64, things=("code",))
    assert is_right(item, item.messages[-1]["content"])
    assert not is_right(item, fact)
    assert not is_right(item, item.messages[-1]["content"].replace(".", "5."))


def test_json_tells_the_types_apart():
    for item in some("json_answer"):
        value = json.loads(item.messages[-1]["content"])
        assert is_right(item, json.dumps(value, indent=2))
        changed = {key: str(each) if isinstance(each, int) else [] for key, each in value.items()}
        assert not is_right(item, json.dumps(changed))
        assert not is_right(item, "{")


def test_tool_calls_fit_their_description():
    calls = some("tools", kind="call")
    for item in calls:
        (call,) = item.messages[-1]["tool_calls"]
        (tool,) = (tool["function"] for tool in item.tools if tool["function"]["name"] == call["function"]["name"])
        assert set(call["function"]["arguments"]) == set(tool["parameters"]["required"])
        assert not is_right(item, written(item) * 2)
    assert {len(item.tools) for item in calls} == {1, 2, 3}


def test_without_need_no_tool_is_called():
    for item in some("tools", kind="none"):
        assert not is_right(item, '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>' + written(item))


def test_a_chat_does_not_teach_answers_whose_reasoning_is_gone():
    rng = Random(5)
    earlier = [message for _ in range(100) for message in chat.make(Draw("train", rng)).messages[:-1]]
    assert not any("reasoning_content" in message for message in earlier)
    assert {message["weight"] for message in earlier if "weight" in message} == {0}
