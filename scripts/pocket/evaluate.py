"""Accuracy of the model, skill by skill, on generated conversations that training never sees.

Asks through a running server or an engine in this process, always greedily and with the rendered prompt, and judges
by `Item.is_right`. Independent of how the model was made.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mlx_backend.api.errors import EngineError
from mlx_backend.api.interface import (
    Engine,
    EngineConfig,
    GenerationRequest,
    KVCacheConfig,
    SamplingParams,
    SchedulerConfig,
    TokenEvent,
)
from mlx_backend.factory import create_engine
from scripts.pocket import corpus
from scripts.pocket.items import Item
from scripts.pocket.tokenizer import CONTEXT, prompt
from server import pocket
from server.text.tokenizer import Tokenizer, load_tokenizer

MAX_TOKENS = 768
"""Far above the longest reasoning of the corpus: an answer of this length is lost."""
_KEPT_MISTAKES = 5
_PROMPT_TAIL = 400


@dataclass(frozen=True, slots=True)
class Case:
    """One question, and the row of the table that it counts for."""

    row: str
    item: Item


@dataclass(frozen=True, slots=True)
class Reply:
    """Complete output of the model."""

    text: str
    num_prompt_tokens: int
    num_tokens: int
    is_whole: bool
    """Whether it ended its turn itself."""

    @property
    def content(self) -> str:
        """The text after the reasoning; empty if the reasoning never ended."""
        thought, end, rest = self.text.partition("</think>")
        if end:
            return rest.strip()
        return "" if "<think>" in thought else thought.strip()


@dataclass(frozen=True, slots=True)
class Judged:
    case: Case
    reply: Reply
    is_right: bool


Ask = Callable[[str], Awaitable[Reply]]
"""Returns the model's output for a rendered prompt."""


# --- the questions


def cases(
    skills: Sequence[str],
    contexts: Sequence[int],
    count: int,
    seed: int,
    measure: Callable[[str], int],
    thinking: bool = True,
) -> list[Case]:
    """Return `count` held-out items of every skill; of recall, of every context length, in tokens by `measure`.

    `thinking`: the chat template's default, or switched off.
    """
    found: list[Case] = []
    for skill in skills:
        for row, options in _rows(skill, contexts):
            rng = random.Random(f"{seed} {row}")
            if "context_tokens" in options:
                options["measure"] = measure
            options["thinking"] = thinking
            found += [Case(row, item) for item in islice(_judgeable(skill, rng, options), count)]
    return found


_KINDS = {
    "letters": {"counting": "count", "spelling": "spell"},
    "tools": {"calling": "call", "answering": "answer", "none that fits": "none"},
}
"""Skills of several rows: each row's name, and its `kind` within the skill."""


def _rows(skill: str, contexts: Sequence[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    if skill in _KINDS:
        yield from ((f"{skill}: {row}", {"kind": kind}) for row, kind in _KINDS[skill].items())
        return
    if skill != "recall":
        yield skill, {}
        return
    yield "recall", {}  # short, in all its forms
    for length in contexts:
        yield f"recall at {length}", {"context_tokens": length}


def _judgeable(skill: str, rng: random.Random, options: dict[str, Any]) -> Iterator[Item]:
    while True:
        item = corpus.generate(skill, "test", rng, **options)
        if item.is_right is not None:
            yield item


# --- where the questions go


@asynccontextmanager
async def in_process(folder: Path, tokenizer: Tokenizer, batch: int, kv_cache: KVCacheConfig) -> AsyncIterator[Ask]:
    """Yield an engine in this process. Raises ModelLoadError."""
    engine = create_engine(
        EngineConfig(
            model_path=str(folder),
            scheduler=SchedulerConfig(max_num_seqs=batch),
            kv_cache=kv_cache,
        )
    )
    engine.start()
    try:
        await _loaded(engine)
        yield lambda text: _generate(engine, tokenizer, text)
    finally:
        engine.close()


async def _loaded(engine: Engine) -> None:
    while engine.model_info is None:
        if engine.failure is not None:
            raise engine.failure
        await asyncio.sleep(0.005)


async def _generate(engine: Engine, tokenizer: Tokenizer, text: str) -> Reply:
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    request = GenerationRequest(
        request_id="evaluate",
        prompt_ids=ids,
        max_tokens=_room(len(ids)),
        sampling=SamplingParams(temperature=0),
        stop_ids=tokenizer.eos_ids,
    )
    arrivals = [event async for arrived in engine.submit([request]) for event in arrived]
    events = [event for event in arrivals if isinstance(event, TokenEvent)]
    written = [event.token_id for event in events]
    return Reply(tokenizer.decode(written), len(ids), len(written), events[-1].finish_reason == "stop")


@asynccontextmanager
async def through_server(url: str, tokenizer: Tokenizer) -> AsyncIterator[Ask]:
    """Yield a running server; `tokenizer` is that of its model, and counts the prompts."""
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:

        async def ask(text: str) -> Reply:
            num_prompt_tokens = len(tokenizer.encode(text, add_special_tokens=False))
            body = {"prompt": text, "max_tokens": _room(num_prompt_tokens), "temperature": 0}
            response = await client.post("/v1/completions", json=body)
            response.raise_for_status()
            answer = response.json()
            (choice,) = answer["choices"]
            num_tokens = answer["usage"]["completion_tokens"]
            return Reply(choice["text"], num_prompt_tokens, num_tokens, choice["finish_reason"] == "stop")

        yield ask


def _room(num_prompt_tokens: int) -> int:
    return max(1, min(MAX_TOKENS, CONTEXT - num_prompt_tokens))


# --- asking and judging


async def put(questions: Sequence[Case], ask: Ask, batch: int, told: Callable[[], None]) -> list[Judged]:
    """Ask everything, `batch` at once; `told` is called after each answer."""
    places = asyncio.Semaphore(batch)

    async def one(case: Case) -> Judged:
        async with places:
            reply = await ask(prompt(case.item))
        told()
        return Judged(case, reply, judge(case.item, reply))

    return list(await asyncio.gather(*map(one, questions)))


def judge(item: Item, reply: Reply) -> bool:
    """Return whether the answer is right and complete."""
    assert item.is_right is not None, "only what can be judged is asked"
    return reply.is_whole and item.is_right(reply.content)


def is_json(reply: Reply) -> bool:
    """Return whether the answer is JSON, right or wrong."""
    with suppress(ValueError):
        json.loads(reply.content)
        return reply.is_whole
    return False


def summary(answers: Iterable[Judged], total_s: float) -> dict[str, Any]:
    """Return the accuracy per row as JSON, with a few mistakes of each."""
    rows: dict[str, list[Judged]] = {}
    num_tokens = 0
    for answer in answers:
        num_tokens += answer.reply.num_tokens
        rows.setdefault(answer.case.row, []).append(answer)
        if answer.case.row == "json_answer":
            rows.setdefault("json_answer: is JSON", []).append(replace(answer, is_right=is_json(answer.reply)))
    return {
        "total_s": round(total_s, 2),
        "tokens_per_s": round(num_tokens / total_s, 1),
        "skills": {name: _row(row) for name, row in rows.items()},
        "mistakes": {name: _mistakes(row) for name, row in rows.items() if not all(a.is_right for a in row)},
    }


def _row(answers: Sequence[Judged]) -> dict[str, Any]:
    right = sum(answer.is_right for answer in answers)
    return {
        "right": right,
        "items": len(answers),
        "accuracy": round(right / len(answers), 4),
        "cut_off": sum(not answer.reply.is_whole for answer in answers),
        "prompt_tokens": round(fmean(answer.reply.num_prompt_tokens for answer in answers), 1),
        "answer_tokens": round(fmean(answer.reply.num_tokens for answer in answers), 1),
    }


def _mistakes(answers: Sequence[Judged]) -> list[dict[str, str]]:
    wrong = [answer for answer in answers if not answer.is_right]
    return [
        {
            "prompt": prompt(answer.case.item)[-_PROMPT_TAIL:],
            "expected": _expected(answer.case.item),
            "written": answer.reply.text,
        }
        for answer in wrong[:_KEPT_MISTAKES]
    ]


def _expected(item: Item) -> str:
    last = item.messages[-1]
    return str(last.get("content") or last.get("tool_calls"))


# --- the command


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate according to the arguments; print one line and return 1 if that fails."""
    arguments = _arguments(argv)
    try:
        result = asyncio.run(_evaluate(arguments))
    except (EngineError, httpx.HTTPError, OSError, ValueError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        arguments.json.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    _print(result)
    return 0


async def _evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    tokenizer = load_tokenizer(arguments.model)
    questions = cases(
        arguments.skills,
        arguments.context,
        arguments.items,
        arguments.seed,
        lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
        arguments.thinking,
    )
    kv_cache = KVCacheConfig(**{field.name: getattr(arguments, f"kv_{field.name}") for field in fields(KVCacheConfig)})
    asked = (
        through_server(arguments.url, tokenizer)
        if arguments.url
        else in_process(arguments.model, tokenizer, arguments.batch, kv_cache)
    )
    async with asked as ask:
        with _progress() as bar:
            task = bar.add_task("asking", total=len(questions))
            start = time.perf_counter()
            answers = await put(questions, ask, arguments.batch, lambda: bar.advance(task))
            total_s = time.perf_counter() - start
    names = ("url", "items", "context", "thinking", "batch", "seed")
    settings = {name: getattr(arguments, name) for name in names} | {"kv_cache": asdict(kv_cache)}
    return {"model": arguments.model.name, **settings, **summary(answers, total_s)}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.pocket.evaluate", description=__doc__)
    parser.add_argument("--url", help="ask this running server, e.g. http://127.0.0.1:8080")
    parser.add_argument("--model", type=Path, default=pocket.folder(), help="model folder (default: the shipped one)")
    parser.add_argument("--items", type=int, default=100, help="items per row (default 100)")
    parser.add_argument("--skills", type=_names, default=list(corpus.SKILLS), help="a,b (default: all)")
    parser.add_argument("--context", type=_numbers, default=[256, 1024, 4000], help="recall's prompt lengths, tokens")
    parser.add_argument("--batch", type=int, default=8, help="questions in flight together (default 8)")
    parser.add_argument("--no-thinking", dest="thinking", action="store_false", help="with the switch off")
    for field in fields(KVCacheConfig):
        flag = f"--kv-{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=int, metavar="N", help=f"in process: {field.metadata['help']}")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--seed", type=int, default=0, help="which held-out items (default 0)")
    arguments = parser.parse_args(argv)
    if arguments.url and any(getattr(arguments, f"kv_{field.name}") is not None for field in fields(KVCacheConfig)):
        parser.error("how the KV cache is held is the server's to set: start it with --kv-cache-bits")
    if unknown := sorted(set(arguments.skills) - set(corpus.SKILLS)):
        parser.error(f"there is no skill {unknown[0]}; there are {', '.join(corpus.SKILLS)}")
    return arguments


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _print(result: dict[str, Any]) -> None:
    columns = ("skill", "right", "of", "accuracy", "cut off", "prompt tokens", "answer tokens")
    table = Table(*columns, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in result["skills"].items():
        cells = row | {"accuracy": f"{row['accuracy']:.1%}"}
        table.add_row(name, *map(str, cells.values()))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{result['total_s']:.1f} s, {result['tokens_per_s']:.0f} tokens/s, {result['batch']} at once")


if __name__ == "__main__":
    sys.exit(main())
