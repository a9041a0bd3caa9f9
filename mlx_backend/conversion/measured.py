"""The figures of a comparison of two models. No MLX."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Quality:
    """How a model's predictions differ from another's, over so many of them."""

    num_tokens: int
    kl: float
    """Mean KL divergence of the model's next token from the other's, nats."""
    agreement: float
    """Share of places where both find the same token likeliest."""
    perplexity: float
    source_perplexity: float

    def to_document(self) -> dict[str, Any]:
        return asdict(self)
