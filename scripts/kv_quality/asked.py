"""Right answers of the pocket model under each setting of the KV cache; a process per setting."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mlx_backend.api.interface import KVCacheConfig
from scripts.pocket import corpus
from scripts.pocket.evaluate import cases, in_process, put
from server.text.tokenizer import load_tokenizer

CONTEXTS = [256, 1024]
FULL_CONTEXT = 4000
BATCH = 8
_NUM_PROCESSES = 2


@dataclass(frozen=True, slots=True)
class Asked:
    """Share of right answers by row, and of answers identical to those in full precision."""

    right: dict[str, float]
    same: float
    num_answers: int


Answer = tuple[str, bool, str]
"""The question's row, whether the answer is right, and its text."""


def ask(
    folder: Path, items: int, full_items: int, settings: Mapping[str, KVCacheConfig], tell: Callable[[str], None]
) -> dict[str, Asked]:
    """Return greedy answers under every setting, the first of which is full precision.

    `items` questions per row, `full_items` at the full context, which takes longest.
    """
    context = multiprocessing.get_context("spawn")  # MLX does not survive a fork
    with ProcessPoolExecutor(_NUM_PROCESSES, mp_context=context) as pool:
        jobs = {name: pool.submit(answers, folder, items, full_items, config) for name, config in settings.items()}
        found = {}
        for name, job in jobs.items():
            found[name] = job.result()
            tell(name)
    first = next(iter(found.values()))
    return {name: _judge(each, first) for name, each in found.items()}


def answers(folder: Path, items: int, full_items: int, config: KVCacheConfig) -> list[Answer]:
    """Return the answers of the model in `folder` with such a KV cache."""
    tokenizer = load_tokenizer(folder)

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    questions = cases(list(corpus.SKILLS), CONTEXTS, items, 0, count)
    longest = cases(["recall"], [FULL_CONTEXT], full_items, 0, count)
    questions += [case for case in longest if case.row == f"recall at {FULL_CONTEXT}"]

    async def asked() -> list[Answer]:
        async with in_process(folder, tokenizer, BATCH, config) as answer:
            judged = await put(questions, answer, BATCH, lambda: None)
        return [(each.case.row, each.is_right, each.reply.text) for each in judged]

    return asyncio.run(asked())


def _judge(found: list[Answer], first: list[Answer]) -> Asked:
    rows: dict[str, list[bool]] = {}
    for row, is_right, _ in found:
        rows.setdefault(row, []).append(is_right)
    same = sum(a[2] == b[2] for a, b in zip(found, first, strict=True)) / len(found)
    return Asked({row: sum(right) / len(right) for row, right in rows.items()}, same, len(found))
