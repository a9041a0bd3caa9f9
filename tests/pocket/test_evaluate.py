"""Evaluation: which questions are asked, how a reply is read and judged, and what is reported of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts.pocket import evaluate
from scripts.pocket.evaluate import Case, Judged, Reply, cases, judge, put, summary
from scripts.pocket.items import Item
from scripts.pocket.tokenizer import prompt
from tests.server_process import serving
from tests.tiny_models import write_served_model


def item(expected: str = "3") -> Item:
    messages = ({"role": "user", "content": f"Say {expected}."}, {"role": "assistant", "content": expected})
    return Item(skill="any", messages=messages, is_right=lambda text: text == expected)


def reply(text: str, is_whole: bool = True) -> Reply:
    return Reply(text, 10, 20, is_whole)


def letters_of(text: str) -> int:
    return len(text)


# --- what is asked


def test_every_skill_is_a_row_and_recall_one_per_length() -> None:
    found = cases(["letters", "recall"], [256, 512], 3, 0, letters_of)
    rows = ["letters: counting", "letters: spelling", "recall", "recall at 256", "recall at 512"]
    assert [case.row for case in found[::3]] == rows
    assert len(found) == 15
    assert all(case.item.is_right is not None for case in found)


def test_the_questions_depend_on_the_seed_and_on_nothing_else() -> None:
    def asked(seed: int, skills: Sequence[str] = ("decimals", "tools")) -> list[str]:
        return [prompt(case.item) for case in cases(skills, [], 5, seed, letters_of)]

    assert asked(1) == asked(1)
    assert asked(1) != asked(2)
    assert asked(1)[5:] == asked(1, ["tools"])


def test_the_switch_of_thinking() -> None:
    assert all(case.item.enable_thinking for case in cases(["decimals"], [], 30, 0, letters_of))
    assert not any(case.item.enable_thinking for case in cases(["decimals"], [], 30, 0, letters_of, thinking=False))


def test_json_counts_twice_as_right_and_as_json() -> None:
    written = ['{"a":1}', '{"a":2}', '{"a":', "<think>\n\n</think>\n\n{}"]
    answers = [Judged(Case("json_answer", item()), reply(text), text == written[0]) for text in written]
    answers.append(Judged(Case("json_answer", item()), reply("{}", is_whole=False), False))
    rows = summary(answers, 1.0)["skills"]
    assert (rows["json_answer"]["right"], rows["json_answer: is JSON"]["right"]) == (1, 3)


@pytest.mark.parametrize("length", [300, 4000])
def test_a_context_has_the_length_that_is_asked_for(length: int) -> None:
    for case in cases(["recall"], [length], 20, 0, letters_of)[20:]:
        written = sum(len(message["content"]) for message in case.item.messages)
        assert 0.8 * length < written < length + 60  # what stands around the facts is reckoned, not measured


# --- how a reply is read


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("3", "3"),
        ("<think>\n1 2\n</think>\n\n3", "3"),
        ("<think>\n\n</think>\n\n<tool_call>\n{}\n</tool_call>", "<tool_call>\n{}\n</tool_call>"),
        ("<think>\n1 2 3", ""),
        ("", ""),
    ],
)
def test_the_thought_is_no_part_of_the_answer(text: str, content: str) -> None:
    assert reply(text).content == content


@pytest.mark.parametrize(
    ("text", "is_whole", "is_right"),
    [("3", True, True), ("3", False, False), ("4", True, False), ("<think>3</think>4", True, False)],
)
def test_right_is_what_is_right_and_whole(text: str, is_whole: bool, is_right: bool) -> None:
    assert judge(item(), reply(text, is_whole)) == is_right


async def test_so_many_are_asked_at_once_and_all_in_order() -> None:
    waiting, most = 0, 0

    async def ask(text: str) -> Reply:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        for _ in range(3):
            await asyncio.sleep(0)
        waiting -= 1
        return reply(text.partition("Say ")[2].partition(".")[0])

    told: list[None] = []
    questions = [Case("row", item(str(number))) for number in range(10)]
    answers = await put(questions, ask, 4, lambda: told.append(None))
    assert (most, len(told)) == (4, 10)
    assert [answer.reply.text for answer in answers] == [str(number) for number in range(10)]
    assert all(answer.is_right for answer in answers)


# --- what is reported


def test_accuracy_counts_by_row_and_mistakes_are_kept() -> None:
    answers = [Judged(Case("a", item()), reply("3"), True), Judged(Case("b", item()), reply("3"), True)]
    answers += [Judged(Case("b", item()), reply("4", is_whole=False), False)] * 7
    told = summary(answers, 2.0)
    assert (told["total_s"], told["tokens_per_s"]) == (2.0, 90.0)
    assert told["skills"]["a"] == {
        "right": 1, "items": 1, "accuracy": 1.0, "cut_off": 0, "prompt_tokens": 10, "answer_tokens": 20
    }  # fmt: skip
    assert (told["skills"]["b"]["accuracy"], told["skills"]["b"]["cut_off"]) == (0.125, 7)
    assert told["mistakes"].keys() == {"b"}
    assert [(m["expected"], m["written"]) for m in told["mistakes"]["b"]] == [("3", "4")] * 5


# --- the command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_served_model(tmp_path_factory.mktemp("model") / "tiny")


def evaluated(file: Path, *arguments: str) -> dict[str, object]:
    told: dict[str, object] = {}
    common = ("--items", "2", "--skills", "decimals,letters", "--batch", "2", "--json", str(file))
    assert evaluate.main([*arguments, *common]) == 0
    told.update(json.loads(file.read_text(encoding="utf-8")))
    return told


@pytest.mark.mlx
def test_a_server_and_an_engine_here_answer_the_same(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "MAX_TOKENS", 8)
    here = evaluated(tmp_path / "here.json", "--model", str(model))
    assert "decimals" in capsys.readouterr().out
    with serving(str(model)) as (_, client):
        there = evaluated(tmp_path / "there.json", "--model", str(model), "--url", str(client.base_url))
    assert here["url"] is None
    assert here["mistakes"], "a random model is not right"
    assert (there["skills"], there["mistakes"]) == (here["skills"], here["mistakes"])


def test_a_model_that_is_not_there_is_one_line_and_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--model", str(tmp_path / "nowhere")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("evaluate: there is no model folder") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--skills", "letters,juggling"], "no skill juggling"), (["--url", "http://x", "--kv-bits", "8"], "--kv-cache")],
)
def test_what_cannot_be_asked_for_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(arguments)
    assert says in capsys.readouterr().err
