"""Numbers that the mock derives from prompts: vectors, and log-probabilities of tokens that a request names."""

from __future__ import annotations

import math
import random
import struct
import zlib

from mlx_backend.api.interface import EmbeddingInfo, ScoringInfo
from mlx_backend.core.row import Row

EMBEDDING = EmbeddingInfo(dim=16, pooling="last", is_normalized=True)
SCORING = ScoringInfo(kind="tokens", basis="it is a mock", token_ids=(ord("y"), ord("n")))


def vector(prompt_ids: tuple[int, ...]) -> bytes:
    """Return a direction derived from the prompt alone."""
    source = _drawn_by(prompt_ids)
    drawn = [source.gauss() for _ in range(EMBEDDING.dim)]
    length = math.hypot(*drawn)
    return struct.pack(f"<{EMBEDDING.dim}f", *(number / length for number in drawn))


def asked_logprobs(row: Row) -> tuple[float, ...]:
    """Return the log-probabilities that a request names, derived from its prompt alone."""
    source = _drawn_by(row.prompt_ids)
    return tuple(-0.1 - 3 * source.random() for _ in row.sampling.logprob_ids)


def _drawn_by(prompt_ids: tuple[int, ...]) -> random.Random:
    return random.Random(zlib.crc32(repr(prompt_ids).encode()))
