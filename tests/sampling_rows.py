"""Rows of a batch as the sampler sees them, and the tokens it draws for them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_backend.api.interface import SamplingParams
from mlx_backend.core.row import Row
from mlx_backend.core.step import NewRow
from mlx_backend.sampling.keys import base_key
from mlx_backend.sampling.sampler import BatchSampler

VOCAB = 12


def row(params: SamplingParams, prompt: tuple[int, ...] = (1, 2), output: tuple[int, ...] = (), **changes: Any) -> Row:
    """Return a row that joins with this output; `changes` override its other fields."""
    said: dict[str, Any] = {"id": 0, "prompt": 0, "ordinal": 0, "max_num_tokens": len(prompt) + 99, **changes}
    key = base_key(params.seed, said["ordinal"])
    return Row.of(NewRow(prompt_ids=prompt, output_ids=output, sampling=params, key=key, **said))


def sampler(*rows: Row) -> BatchSampler:
    made = BatchSampler()
    made.set_rows(rows, VOCAB)
    return made


def draw(logits: Any, *rows: Row) -> list[int]:
    tokens: list[int] = sampler(*rows).draw(mx.array(logits)).tokens.tolist()
    return tokens
