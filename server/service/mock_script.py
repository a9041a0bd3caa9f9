"""Output of the mock backend: a script's text if one of its lines matches, otherwise random words."""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import MockText
from server.service.job import ChatPrompt, GenerationJob, InfillPrompt, Prompt, TextPrompt
from server.text.tokenizer import Tokenizer

_WORDS = (
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "naïve",
    "waiters",
    "你好",
    "🙂",
)
_CLOSING, _FILLING = frozenset(b'"]}'), frozenset(b" \n0123456789,")
"""Bytes that bring an answer in JSON closer to its end, and bytes that could extend it endlessly."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a script."""

    match: re.Pattern[str]
    text: str


def read_script(path: Path) -> tuple[Line, ...]:
    """Read a file's lines, each an object with `match`, a regular expression, and `text`. Raises ModelLoadError."""
    try:
        written = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeError) as error:
        raise ModelLoadError(f"mock.script: {path} cannot be read ({error})") from error
    return tuple(_line(path, number, text) for number, text in enumerate(written, 1) if text.strip())


def _line(path: Path, number: int, written: str) -> Line:
    try:
        found = json.loads(written)
        if not isinstance(found, dict) or found.keys() != {"match", "text"}:
            raise ValueError('it must be {"match": REGEX, "text": TEXT}')
        if not all(isinstance(value, str) for value in found.values()):
            raise ValueError("'match' and 'text' must be strings")
        found["text"].encode()
        return Line(re.compile(found["match"]), found["text"])
    except (ValueError, OverflowError, RecursionError, re.error) as error:
        raise ModelLoadError(f"mock.script: {path}, line {number}: {error}") from error


class MockAuthor:
    """Writer of one mock model's answers. Thread-safe."""

    def __init__(self, script: Sequence[Line] = (), *, has_tokenizer: bool = False) -> None:
        """`has_tokenizer`: the backend cannot make up its own words, because its tokens are another model's."""
        self._script, self._has_tokenizer = script, has_tokenizer
        self._sets: tuple[frozenset[int], frozenset[int]] | None = None

    def write(
        self, tokenizer: Tokenizer, job: GenerationJob, prompts: Sequence[Sequence[int]], has_grammar: Sequence[bool]
    ) -> list[MockText | None]:
        """Return the answers to each prompt; None if the backend makes them up. Slow for the first grammar.

        `prompts`: token ids of the job's prompts; `has_grammar`: which of them have one.
        """
        pairs = zip(job.prompts, prompts, has_grammar, strict=True)
        return [self._answer(tokenizer, job, prompt, ids, has) for prompt, ids, has in pairs]

    def _answer(
        self, tokenizer: Tokenizer, job: GenerationJob, prompt: Prompt, ids: Sequence[int], has_grammar: bool
    ) -> MockText | None:
        asked = _asked(prompt)
        asked = tokenizer.decode(ids) if asked is None else asked
        text = next((line.text for line in self._script if line.match.search(asked)), None)
        if text is not None:
            outputs = (tuple(tokenizer.encode(text, add_special_tokens=False)),) * job.n
        elif self._has_tokenizer:
            outputs = tuple(self._made_up(tokenizer, ids, ordinal, job) for ordinal in range(job.n))
        else:
            return None
        closing, filling = self._sets_of(tokenizer) if has_grammar else (frozenset[int](), frozenset[int]())
        return MockText(outputs=outputs, closing_ids=closing, filling_ids=filling)

    def _made_up(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], ordinal: int, job: GenerationJob
    ) -> tuple[int, ...]:
        seed = job.sampling.seed if job.sampling.temperature > 0 else None
        source = random.Random(zlib.crc32(repr((tuple(prompt_ids), ordinal, seed)).encode()))
        words = " ".join(source.choice(_WORDS) for _ in range(source.randint(8, 40)))
        return tuple(tokenizer.encode(words, add_special_tokens=False))

    def _sets_of(self, tokenizer: Tokenizer) -> tuple[frozenset[int], frozenset[int]]:
        if self._sets is None:
            written = {
                token_id: frozenset(tokenizer.token_bytes(token_id))
                for token_id in range(tokenizer.vocab_size)
                if token_id not in tokenizer.special_ids
            }
            closing, filling = (
                frozenset(token_id for token_id, found in written.items() if found and found <= wanted)
                for wanted in (_CLOSING, _FILLING)
            )
            self._sets = closing, filling
        return self._sets


def _asked(prompt: Prompt) -> str | None:
    """Return the text to match a script against: the last message, or the prompt; None for token ids."""
    if isinstance(prompt, ChatPrompt):
        return str(prompt.messages[-1].get("content") or "")
    if isinstance(prompt, TextPrompt):
        return prompt.text
    return prompt.prefix if isinstance(prompt, InfillPrompt) else None
