"""Rows of tokens from the corpus: conversations one after the other, with the trained tokens marked. No torch.

A worker process generates and encodes ahead of the training loop.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Full
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from scripts.pocket import corpus
from scripts.pocket.items import Item
from scripts.pocket.tokenizer import encode

END_OF_TEXT = 0
_QUEUE_SIZE = 16
_OPEN_ROWS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Rows of `row_tokens`, look-ups in contexts of `recall_tokens` (least, most); `weights` of the skills."""

    row_tokens: int
    recall_tokens: tuple[int, int]
    weights: dict[str, float] | None = None


def rows(tokenizer: Tokenizer, items: Iterable[Item], row_tokens: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows of row_tokens + 1 ids (uint16) and marks (bool): whole conversations, END_OF_TEXT after each.

    A conversation goes into the fullest open row that it fits; one longer than a row is left out.
    """
    opened: list[tuple[list[int], list[bool]]] = [([], []) for _ in range(_OPEN_ROWS)]
    for item in items:
        new_ids, new_marks = encode(tokenizer, item)
        if len(new_ids) > row_tokens:
            continue
        fitting = [row for row in opened if len(row[0]) + len(new_ids) <= row_tokens]
        if not fitting:
            fullest = max(opened, key=lambda row: len(row[0]))
            yield _padded(*fullest, row_tokens + 1)
            fullest[0].clear()
            fullest[1].clear()
            fitting = [fullest]
        ids, marks = max(fitting, key=lambda row: len(row[0]))
        ids += [*new_ids, END_OF_TEXT]
        marks += [*new_marks, False]


def _padded(ids: list[int], marks: list[bool], size: int) -> tuple[np.ndarray, np.ndarray]:
    missing = size - len(ids)
    return np.array(ids + [END_OF_TEXT] * missing, np.uint16), np.array(marks + [False] * missing)


def batches(tokenizer_file: Path, source: Source, num_rows: int, seed: int) -> Generator[tuple[np.ndarray, np.ndarray]]:
    """Yield batches [num_rows, row_tokens + 1] from a worker process, endlessly."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue(_QUEUE_SIZE)
    worker = context.Process(target=_fill, args=(queue, tokenizer_file, source, num_rows, seed), daemon=True)
    worker.start()
    try:
        while True:
            yield queue.get()
    finally:
        worker.terminate()


def _fill(queue: Any, tokenizer_file: Path, source: Source, num_rows: int, seed: int) -> None:
    os.nice(19)  # the training threads wait for one another: taking a core from one delays all
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    items = corpus.stream("train", seed, source.weights, recall_tokens=source.recall_tokens)
    made = rows(tokenizer, items, source.row_tokens)
    parent = os.getppid()
    queue.cancel_join_thread()  # otherwise unread batches keep the worker from ending
    while os.getppid() == parent:  # ends when the training was killed
        batch = [next(made) for _ in range(num_rows)]
        with contextlib.suppress(Full):
            queue.put((np.stack([ids for ids, _ in batch]), np.stack([marks for _, marks in batch])), timeout=60)


def held_out(
    tokenizer: Tokenizer, skill: str, count: int, seed: int, **options: Any
) -> list[tuple[list[int], list[bool]]]:
    """Return encoded items of one skill that training never sees."""
    source = random.Random(seed)
    items: Sequence[Item] = [corpus.generate(skill, "test", source, **options) for _ in range(count)]
    return [encode(tokenizer, item) for item in items]
