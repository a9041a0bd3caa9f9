"""Speed of a server over prompt lengths and numbers of concurrent requests; two servers alternate. Prints nothing.

Prompts are random words, so that no cache holds them. The number of words for a token count is measured with requests,
because each server has its own tokenizer.
"""

from __future__ import annotations

import asyncio
import random
import string
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx2

from server.client.load import Client
from server.client.record import Record, errors_of, middle, total_tok_s
from server.client.wire import base_url, error_text, open_http

_TEXT = """
the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not
what all were we when your can said there use an each which she do how their if will up other about out many then
them these so some her would make like him into time has look two more write go see number no way could people my
than first water been call who oil its now find long down day did get come made may part over new sound take only
little work know place year live me back give most very after thing our just name good sentence man think say great
where help through much before line right too mean old any same tell boy follow came want show also around form
three small set put end does another well large must big even such because turn here why ask went men read
"""
WORDS = _TEXT.split()
_LETTERS = 8
"""Letters of a prompt's first word: 26 ** 8 combinations."""


class BenchError(Exception):
    """A server cannot be measured; a one-line message."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Measurements to take: every prompt length with every number of concurrent requests, `num_rounds` times."""

    prompt_tokens: Sequence[int]
    concurrency: Sequence[int]
    output_tokens: int
    num_rounds: int = 3

    def cells(self) -> Iterator[tuple[int, int]]:
        return ((length, number) for length in self.prompt_tokens for number in self.concurrency)


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and one of its models; None: the first."""

    url: str
    model: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One server at one prompt length and concurrency: a batch of records per round."""

    prompt_tokens: int
    concurrency: int
    batches: tuple[tuple[Record, ...], ...]

    @property
    def records(self) -> list[Record]:
        return [record for batch in self.batches for record in batch]

    @property
    def _answered(self) -> list[Record]:
        return [record for record in self.records if record.is_answered]

    @property
    def ttft_s(self) -> float | None:
        """Median over the requests."""
        return middle(record.ttft_s for record in self._answered)

    @property
    def decode_tok_s(self) -> float | None:
        """Speed of one answer, median over the requests."""
        return middle(record.decode_tok_s for record in self._answered)

    @property
    def total_tok_s(self) -> float | None:
        """Speed of all answers together, including the wait for the first tokens; median over the rounds."""
        return middle(total_tok_s(batch) for batch in self.batches)

    @property
    def actual_prompt_tokens(self) -> float | None:
        """Prompt tokens by the server's count."""
        return middle(record.num_prompt_tokens for record in self._answered)

    @property
    def errors(self) -> dict[str, int]:
        return errors_of(self.records)


@dataclass(slots=True)
class Subject:
    """A server under measurement, and its results."""

    url: str
    model: str
    client: Client
    version: str | None = None
    tokens_per_word: float = 1.0
    more_tokens: float = 0.0
    """Tokens of a prompt in addition to those of its words."""
    cells: list[Cell] = field(default_factory=list)

    def num_words(self, num_tokens: int) -> int:
        return max(1, round((num_tokens - self.more_tokens) / self.tokens_per_word))


async def measure(
    targets: Sequence[Target], grid: Grid, say: Callable[[str], None], *, seed: int | None = None
) -> list[Subject]:
    """Measure every cell of every target; the targets take turns within a round, in reverse order every second round.

    Raises BenchError if a target cannot be measured at all.
    """
    source = random.Random(seed)
    async with AsyncExitStack() as stack:
        subjects = []
        for target in targets:
            try:
                http = await stack.enter_async_context(open_http(target.url, target.key))
            except ValueError as error:
                raise BenchError(str(error)) from None
            subjects.append(await _open(http, target, source))
            say(f"{subjects[-1].url}: {subjects[-1].model}, {subjects[-1].tokens_per_word:.2f} tokens a word")
        for length, number in grid.cells():
            say(f"{length:,} tokens, {number} at once")
            batches = await _measure_cell(subjects, grid, length, number, source)
            for subject, found in zip(subjects, batches, strict=True):
                subject.cells.append(Cell(length, number, tuple(found)))
    return subjects


async def _measure_cell(
    subjects: Sequence[Subject], grid: Grid, length: int, number: int, source: random.Random
) -> list[list[tuple[Record, ...]]]:
    batches: list[list[tuple[Record, ...]]] = [[] for _ in subjects]
    for turn in range(grid.num_rounds):
        order = range(len(subjects)) if turn % 2 == 0 else reversed(range(len(subjects)))
        for place in order:
            subject = subjects[place]
            prompts = [_prompt(source, subject.num_words(length)) for _ in range(number)]
            asked = (subject.client.complete(prompt, grid.output_tokens) for prompt in prompts)
            batches[place].append(tuple(await asyncio.gather(*asked)))
    return batches


async def _open(http: httpx2.AsyncClient, target: Target, source: random.Random) -> Subject:
    url = base_url(target.url)
    try:
        response = await http.get("/v1/models")
        if response.status_code != 200:
            raise BenchError(f"{url}: {error_text(response.status_code, response.content)}")
        served = [str(model["id"]) for model in response.json()["data"]]
    except httpx2.HTTPError as error:
        raise BenchError(f"{url} cannot be reached: {error or type(error).__name__}") from None
    except (ValueError, LookupError, TypeError):
        raise BenchError(f"{url} does not answer as OpenAI's API does") from None
    if target.model is None and not served:
        raise BenchError(f"{url} serves no model")
    model = target.model or served[0]
    subject = Subject(url, model, Client(http, model, {"ignore_eos": True}), await _version(http))
    await _calibrate(subject, source)
    return subject


async def _version(http: httpx2.AsyncClient) -> str | None:
    """Return the server's name and version, if it reports them."""
    try:
        said: Any = (await http.get("/version")).json()
        return f"{said.get('name', '')} {said.get('version', '')}".strip() or None
    except (httpx2.HTTPError, ValueError, AttributeError):
        return None


async def _calibrate(subject: Subject, source: random.Random) -> None:
    """Measure the tokens per word and whether answers can be forced to a length; also a warm-up."""
    few = await subject.client.complete(_prompt(source, 1), 2)
    if few.error == "HTTP 400" and subject.client.extra:
        subject.client.extra.clear()  # another server's API: answers may end early
        few = await subject.client.complete(_prompt(source, 1), 2)
    more = await subject.client.complete(_prompt(source, len(WORDS) + 1), 2)  # each of them, so that the mean is exact
    error = few.error or more.error
    if error is not None:
        raise BenchError(f"{subject.url}: {subject.model} does not complete a short prompt: {error}")
    if few.num_prompt_tokens and more.num_prompt_tokens and more.num_prompt_tokens > few.num_prompt_tokens:
        subject.tokens_per_word = (more.num_prompt_tokens - few.num_prompt_tokens) / len(WORDS)
        subject.more_tokens = few.num_prompt_tokens - subject.tokens_per_word


def _prompt(source: random.Random, num_words: int) -> str:
    """Return a prompt with all words about equally often: the more even, the closer to the intended length.

    It begins with a unique word: two prompts with a common start would match in a prefix cache.
    """
    words = ["".join(source.choices(string.ascii_lowercase, k=_LETTERS))]
    while len(words) < num_words:
        words += source.sample(WORDS, k=min(len(WORDS), num_words - len(words)))
    return " ".join(words)
