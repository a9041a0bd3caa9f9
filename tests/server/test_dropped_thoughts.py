"""Templates that leave earlier thoughts out of the next prompt: where prompts differ, and that a block ends there.

An agent's conversation is rendered by templates as families have them, its borders are found by the server, and its
prompts and answers go through the real prefix cache, for models whose cache is cut by the token and for models that
keep snapshots.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.config import Config
from server.service.mock_script import Line, MockAuthor
from server.service.model_instance import Recipe
from server.service.registry import ModelRegistry, ServedModel
from server.text.borders import BorderFinder, num_common
from server.text.chat_template import render_text
from server.text.tokenizer import ByteTokenizer
from tests.engine_client import until
from tests.mlx_backend.prefix_cache.test_cache import Rooms
from tests.serving import mock_engine, wait_until

NUM_TURNS, NUM_CALLS = 3, 3
LEAST_GAIN = 8
"""Tokens of which fewer are computed rather than restored."""
STEP = 10_000
"""Snapshots are taken at borders alone: no prompt is as long."""


class Template(ByteTokenizer):
    """`role: content`, a line a message; `opening` is where an answer begins."""

    opening = "assistant: "

    def shows(self, messages: Sequence[Mapping[str, Any]], place: int) -> bool:
        """Whether the thought of a message is in the prompt."""
        return True

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        template_kwargs: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        lines = [f"{each['role']}: {self.body(messages, place)}\n" for place, each in enumerate(messages)]
        return "".join(lines) + (self.opening if template_kwargs.get("add_generation_prompt", True) else "")

    def body(self, messages: Sequence[Mapping[str, Any]], place: int) -> str:
        thought = messages[place].get("reasoning_content")
        shown = f"<think>\n{thought}\n</think>" if thought and self.shows(messages, place) else ""
        return shown + str(messages[place]["content"])

    def generated(self, message: Mapping[str, Any]) -> str:
        """An answer as the model writes it."""
        thought = message.get("reasoning_content", "a thought")
        return f"<think>\n{thought}\n</think>{message['content']}\n".removeprefix(self.opening.partition(" ")[2])


class AfterTheLastQuestion(Template):
    """As Qwen3: the thoughts since the user's last message."""

    def shows(self, messages: Sequence[Mapping[str, Any]], place: int) -> bool:
        return all(each["role"] != "user" for each in messages[place:])


class Opened(AfterTheLastQuestion):
    """As Qwen3.5: its prompts open the thought."""

    opening = "assistant: <think>\n"


class AfterTheLastAnswer(Template):
    """As Kimi K2: the thoughts since the last message that called nothing."""

    def shows(self, messages: Sequence[Mapping[str, Any]], place: int) -> bool:
        return all(
            each["role"] != "assistant" or each.get("calls") or each.get("tool_calls") for each in messages[place:]
        )


class Never(Template):
    """As DeepSeek R1."""

    opening = "assistant: <think>\n"

    def shows(self, messages: Sequence[Mapping[str, Any]], place: int) -> bool:
        return False


def said(role: str, content: str, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def conversation(*, gives_thoughts: bool) -> list[dict[str, Any]]:
    """Questions, calls with their results, and answers, whose thoughts a client gives back or does not."""
    talk = [said("system", "You work on files. " * 9)]
    for turn in range(NUM_TURNS):
        talk.append(said("user", f"Question {turn}? " * 5))
        for number in range(NUM_CALLS + 1):
            is_last = number == NUM_CALLS
            thought = {"reasoning_content": f"thought {number} of turn {turn} " * 4} if gives_thoughts else {}
            content = f"answer {turn}" if is_last else f"call {number}"
            talk.append(said("assistant", content, calls=not is_last, **thought))
            if not is_last:
                talk.append(said("tool", f"result {number} of {turn} " * 6))
    return talk


@pytest.mark.parametrize("gives_thoughts", [True, False], ids=["given back", "not given back"])
@pytest.mark.parametrize("cuts", [True, False], ids=["by the token", "snapshots"])
@pytest.mark.parametrize("kind", [Template, AfterTheLastQuestion, Opened, AfterTheLastAnswer, Never])
def test_a_prompt_is_computed_from_where_it_differs(kind: type[Template], cuts: bool, gives_thoughts: bool) -> None:
    template = kind()
    finder, rooms = BorderFinder(template), Rooms(10_000_000, cuts=cuts, step=STEP)
    talk = conversation(gives_thoughts=gives_thoughts)
    prompts: list[list[int]] = []
    known: list[list[int]] = []
    last_question = 0
    for place, message in enumerate(talk):
        if message["role"] != "assistant":
            continue
        asked = talk[:place]
        text = render_text(template, asked, {})
        ids = template.encode(text, add_special_tokens=False)
        found = finder.find(ids, asked, {}, with_positions=not cuts)
        group = rooms.run(ids, system_border=found.system, cache_breakpoints=found.positions)
        answered = [before for before in known if cuts or ids[: len(before)] == before]  # no snapshot is in an answer
        common = max((num_common(before, ids) for before in (*answered, *prompts)), default=0)
        # a snapshot may be before the words with which an answer begins, and the last token is always computed
        slack = max(LEAST_GAIN, 1 if cuts else len(template.opening) + 1)
        assert group.num_cached_tokens >= min(common, len(ids) - 1) - slack, text[:common]
        # nothing before the last question is computed again, whatever is left out behind it
        assert not known or group.num_cached_tokens >= last_question - slack, text[:common]
        output = template.encode(template.generated(message), add_special_tokens=False)
        rooms.answer(group, output)
        rooms.change_rows()
        prompts.append(ids)
        known.append([*ids, *output])
        if asked[-1]["role"] == "user":
            last_question = len(render_text(template, asked, {}, add_generation_prompt=False).encode())


@asynccontextmanager
async def answering(
    *, computes_ahead: bool, text: str = "Yes.", kind: type[Template] = AfterTheLastQuestion
) -> AsyncIterator[tuple[httpx.AsyncClient, ServedModel]]:
    """A mock whose every answer is this text."""
    recipe = Recipe(
        build_engine=lambda _: mock_engine(),
        load_tokenizer=kind,
        author=MockAuthor([Line(re.compile(""), text)]),
        computes_ahead=computes_ahead,
    )
    model = ServedModel("mock", None, recipe.load_tokenizer, recipe=recipe)
    model.start()
    wait_until(lambda: model.state == "loaded")
    registry = ModelRegistry([model])
    app = create_app(Config(), registry)
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            yield client, model
    finally:
        await registry.close()


async def ask(client: httpx.AsyncClient, talk: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Tokens of the prompt, and those of them that were known."""
    messages = [{name: value for name, value in message.items() if name != "calls"} for message in talk]
    answer = await client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 90})
    usage = answer.raise_for_status().json()["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("computes_ahead", [True, False])
async def test_the_next_question_finds_the_form_without_thoughts(computes_ahead: bool) -> None:
    first = conversation(gives_thoughts=True)[: 2 + 2 * NUM_CALLS]
    after = [*first, said("assistant", "Yes."), said("user", "And now?")]
    async with answering(computes_ahead=computes_ahead) as (client, model):
        await ask(client, first)
        await until(lambda: model.ahead.is_idle)
        num_prompt, num_cached = await ask(client, after)
    question = len("And now?\nassistant:")
    if computes_ahead:
        assert num_cached >= num_prompt - question - LEAST_GAIN
    else:
        assert num_cached < num_prompt - 256


@pytest.mark.parametrize(
    ("talk", "text"),
    [
        (conversation(gives_thoughts=False)[:8], "Yes."),  # nothing is left out
        (conversation(gives_thoughts=True)[:8], "y" * 200),  # the answer is cut off
        (conversation(gives_thoughts=True)[:10], "Yes."),  # it answers a question, and all before is as it was
    ],
)
async def test_what_is_known_or_goes_on_is_not_computed_ahead(talk: list[dict[str, Any]], text: str) -> None:
    async with answering(computes_ahead=True, text=text) as (client, model):
        num_prompt, _ = await ask(client, talk)
        await until(lambda: model.ahead.is_idle)
        assert model.engine.stats().prefix_cache.num_computed_tokens <= num_prompt


@pytest.mark.parametrize(("kind", "number"), [(AfterTheLastQuestion, 1), (Template, 0)])
async def test_a_template_that_keeps_all_costs_nothing(
    kind: type[Template], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[object] = []

    def find(*parts: object) -> list[int]:
        rendered.append(parts)
        return []

    monkeypatch.setattr(BorderFinder, "find_next", find)
    async with answering(computes_ahead=True, kind=kind) as (client, model):
        await ask(client, conversation(gives_thoughts=True)[:8])
        await until(lambda: model.ahead.is_idle)
    assert len(rendered) == number


async def test_a_request_comes_first() -> None:
    """What is computed ahead ends with the next request, and nothing of it fails."""
    first = conversation(gives_thoughts=True)[: 2 + 2 * NUM_CALLS]
    async with answering(computes_ahead=True) as (client, model):
        for _ in range(3):
            await ask(client, first)
            task = model.ahead._task
            await ask(client, [said("user", "Hello")])
            assert task is not None
            assert task.done()
        await until(lambda: model.ahead.is_idle)
        assert model.health().status == "ok"


@pytest.mark.parametrize(
    ("kind", "forgets"),
    [(Template, False), (AfterTheLastQuestion, True), (Opened, True), (AfterTheLastAnswer, True), (Never, False)],
)
def test_templates_that_change_a_turn_are_known(kind: type[Template], forgets: bool) -> None:
    assert BorderFinder(kind()).forgets is forgets


@pytest.mark.parametrize("cuts", [True, False], ids=["by the token", "snapshots"])
def test_both_forms_are_kept(cuts: bool) -> None:
    """With its thoughts an answer is continued; without them, as the next question's prompt has it."""
    template, rooms = AfterTheLastQuestion(), Rooms(10_000_000, cuts=cuts, step=STEP)
    talk = conversation(gives_thoughts=True)[: 2 + 2 * NUM_CALLS + 2]
    with_thoughts, without = talk[:-1], talk
    texts = [render_text(template, some, {}) for some in (with_thoughts, without, with_thoughts, without)]
    cached = []
    for text in texts:
        ids = template.encode(text, add_special_tokens=False)
        group = rooms.run(ids)
        rooms.answer(group, template.encode("x", add_special_tokens=False))
        rooms.change_rows()
        cached.append(group.num_cached_tokens - len(ids))
    assert cached[2:] == [-1, -1]
    assert cached[1] < -100
