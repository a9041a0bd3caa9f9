"""Prompts to vectors: the hidden states after a model's last norm, pooled on the device, chunk by chunk.

The head is never computed. Finds a model's inner part by mlx-lm's name, `model`; a model without it makes no vectors.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_backend.api.interface import EmbeddingInfo
from mlx_backend.core.step import Chunk
from mlx_backend.model.checkpoint import Checkpoint
from mlx_backend.model.loader import SCORE
from mlx_backend.model.pooling import read_pooling
from mlx_backend.model.scoring import is_classifier, read_scoring

_LEAST_LENGTH = 1e-12
"""Length below which a vector is not normalized; torch's normalize has the same bound."""
Computed = tuple[mx.array | None, bytes | None]
"""The pooled state of a prompt so far, and its vector once it is computed."""
_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError)


def check_hidden(model: Any, make_caches: Callable[[], list[Any]], dim: int) -> str | None:
    """Return None if the model gives its hidden states apart from its logits; else what went wrong."""
    try:
        shape = model.model(mx.array([[0, 1]]), cache=make_caches()).shape
    except _ERRORS as error:
        return f"mlx-lm's code for it gives no hidden states ({type(error).__name__}: {str(error)[:200]})"
    return None if shape == (1, 2, dim) else f"mlx-lm's code for it gives {shape} for hidden states of {dim} numbers"


def read_embedding(
    model: Any, make_caches: Callable[[], list[Any]], checkpoint: Checkpoint, dim: int
) -> EmbeddingInfo | str:
    """Return the properties of the model's embeddings, or why it makes none."""
    pooling = read_pooling(checkpoint)
    if isinstance(pooling, str):
        return pooling
    reason = check_hidden(model, make_caches, dim)
    return reason or EmbeddingInfo(dim=dim, pooling=pooling.place, is_normalized=pooling.is_normalized)


@dataclass(frozen=True, slots=True)
class Vectors:
    """Results of prompts beside text. `computed`: how `compute` makes them; None: there are none."""

    computed: EmbeddingInfo | None
    report: dict[str, Any]
    """Fields of the model's ModelInfo."""


def read_vectors(model: Any, make_caches: Callable[[], list[Any]], checkpoint: Checkpoint, dim: int) -> Vectors:
    """Return what the model makes: embeddings, scores, or neither, and why."""
    embedding = read_embedding(model, make_caches, checkpoint, dim)
    scoring = read_scoring(checkpoint)
    if not isinstance(scoring, str) and scoring.kind == "head":
        reason = check_hidden(model, make_caches, dim)
        scoring = scoring if reason is None else reason
    if is_classifier(checkpoint.config):
        embedding = "it is a classifier"
    computed = None if isinstance(embedding, str) else embedding
    if not isinstance(scoring, str) and scoring.kind == "head":
        computed = EmbeddingInfo(dim=1, pooling="last", is_normalized=False)
    report: dict[str, Any] = {}
    for name, found in (("embedding", embedding), ("scoring", scoring)):
        report |= {f"no_{name}_reason": found} if isinstance(found, str) else {name: found, f"no_{name}_reason": ""}
    return Vectors(computed, report)


def compute(model: Any, chunk: Chunk, caches: list[Any], pooled: mx.array | None, info: EmbeddingInfo) -> Computed:
    """Compute a chunk into its caches and the `pooled` state; the prompt's last chunk also returns its vector."""
    hidden = model.model(mx.array(chunk.token_ids)[None], cache=caches)[0]
    is_last = chunk.stop == chunk.num_prompt_tokens
    if is_last or info.pooling != "last":  # what is not pooled is not computed: most of the last layer
        pooled = _pool(pooled, hidden, info)
    if is_last and hasattr(model, SCORE):
        pooled = getattr(model, SCORE)(hidden[-1:])[0].astype(mx.float32)
    mx.eval([cache.state for cache in caches], pooled)  # as for a chunk that is not pooled
    vector = None if pooled is None or not is_last else _finish(pooled, chunk.num_prompt_tokens, info)
    return pooled, vector


def _pool(before: mx.array | None, hidden: mx.array, info: EmbeddingInfo) -> mx.array:
    """Return float32 [dim], from a chunk's hidden states [tokens, dim] and what was pooled before it."""
    if info.pooling == "last":
        return hidden[-1].astype(mx.float32)
    if info.pooling == "first":
        return hidden[0].astype(mx.float32) if before is None else before
    summed = hidden.astype(mx.float32).sum(axis=0)
    return summed if before is None else before + summed


def _finish(pooled: mx.array, num_tokens: int, info: EmbeddingInfo) -> bytes:
    vector = pooled / num_tokens if info.pooling == "mean" else pooled
    if info.is_normalized:
        vector = vector / mx.maximum(mx.linalg.norm(vector), _LEAST_LENGTH)
    return struct.pack(f"<{info.dim}f", *vector.tolist())  # once a prompt
