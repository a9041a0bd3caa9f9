"""Samples to measure a model on, and the figures of a comparison of two models. No MLX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SEQUENCE_TOKENS = 512
"""Length of the sequences into which a plain text is cut."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A sequence of tokens, and the place from which they are predicted: 1 for all that can be, more after a prompt."""

    ids: tuple[int, ...]
    first: int = 1

    @property
    def num_predicted(self) -> int:
        return max(0, len(self.ids) - self.first)


def cut(ids: Sequence[int], length: int = SEQUENCE_TOKENS) -> tuple[Sample, ...]:
    """Return a text's tokens as samples of `length`, or as one if there are fewer; the rest is left out."""
    length = min(length, len(ids))
    if length < 2:
        return ()
    return tuple(Sample(tuple(ids[at : at + length])) for at in range(0, len(ids) - length + 1, length))


def first_tokens(samples: Iterable[Sample], most: int) -> tuple[Sample, ...]:
    """Return the first samples that have `most` tokens together; at least one, cut off if it is longer."""
    found: list[Sample] = []
    left = most
    for sample in samples:
        if len(sample.ids) > left:
            if not found and Sample(sample.ids[:left], sample.first).num_predicted:
                found.append(Sample(sample.ids[:left], sample.first))
            break
        if sample.num_predicted:
            found.append(sample)
            left -= len(sample.ids)
    return tuple(found)


def spread(samples: Sequence[Sample], most: int) -> tuple[Sample, ...]:
    """Return evenly spread samples with about `most` tokens together at most."""
    total = sum(len(sample.ids) for sample in samples)
    if total <= most:
        return first_tokens(samples, most)
    step = max(1, round(total / most))
    return first_tokens(samples[::step], most)


@dataclass(frozen=True, slots=True)
class Quality:
    """Difference of a model's predictions from another's, and the number of predictions."""

    num_tokens: int
    kl: float
    """Mean KL divergence of the model's next token from the other's, nats."""
    agreement: float
    """Share of places where both models rate the same token likeliest."""
    perplexity: float
    source_perplexity: float

    def to_document(self) -> dict[str, Any]:
        return asdict(self)
