"""Rows of a batch as the sampler sees them, and what it draws for them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_backend.api.interface import GenerationRequest, SamplingParams
from mlx_backend.sampling.sampler import BatchSampler
from mlx_backend.sequence import Prefill, Sequence

VOCAB = 12


def row(
    params: SamplingParams, prompt: tuple[int, ...] = (1, 2), output: tuple[int, ...] = (), **changes: Any
) -> Sequence:
    """A sequence with that much output; `changes` go into its request."""
    request = GenerationRequest(request_id="x", prompt_ids=prompt, max_tokens=99, sampling=params, **changes)
    sequence = Sequence(Prefill(request), 0, 0)
    sequence.output_ids = list(output)
    sequence.num_started_tokens = len(output)
    return sequence


def sampler(*rows: Sequence) -> BatchSampler:
    made = BatchSampler()
    made.set_rows(rows, VOCAB)
    return made


def draw(logits: Any, *rows: Sequence) -> list[int]:
    tokens: list[int] = sampler(*rows).draw(mx.array(logits)).tokens.tolist()
    return tokens
