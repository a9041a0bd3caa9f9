"""One request as its client saw it, and totals of several. Pure: usable for servers and for raw runs alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median


@dataclass(frozen=True, slots=True)
class Record:
    """Times are seconds of the client's own clock; only their differences are meaningful."""

    sent_s: float
    stamps: tuple[float, ...] = ()
    """Arrival time of each piece of text."""
    num_output_tokens: int = 0
    num_cached_tokens: int | None = None
    error: str | None = None
    num_prompt_tokens: int | None = None

    @property
    def is_answered(self) -> bool:
        """Whether text arrived, and the answer was complete."""
        return self.error is None and bool(self.stamps)

    @property
    def ttft_s(self) -> float | None:
        """Time from sending to the first text."""
        return self.stamps[0] - self.sent_s if self.stamps else None

    @property
    def decode_tok_s(self) -> float | None:
        """Tokens per second from the first text to the last; None for an answer of one piece."""
        if len(self.stamps) < 2 or self.stamps[-1] <= self.stamps[0]:
            return None
        return (self.num_output_tokens - 1) / (self.stamps[-1] - self.stamps[0])

    def gaps(self, after_s: float = float("-inf")) -> Iterator[float]:
        """Return the seconds between consecutive texts, for those that ended later than `after_s`."""
        return (later - earlier for earlier, later in pairwise(self.stamps) if later > after_s)


def ratio(value: float | None, base: float | None) -> float | None:
    """Return `value / base`; None if either is missing or the base is zero."""
    return value / base if value is not None and base else None


def middle(values: Iterable[float | None]) -> float | None:
    """Return the median of the values that are not None; None if there are none."""
    there = [value for value in values if value is not None]
    return median(there) if there else None


def total_tok_s(records: Sequence[Record]) -> float | None:
    """Return the tokens per second of all answers, from the first sending to the last text."""
    answered = [record for record in records if record.is_answered]
    if not answered:
        return None
    span_s = max(record.stamps[-1] for record in answered) - min(record.sent_s for record in records)
    return sum(record.num_output_tokens for record in answered) / span_s if span_s > 0 else None


def errors_of(records: Iterable[Record]) -> dict[str, int]:
    """Return the number of failures by kind."""
    return dict(Counter(record.error or "no text" for record in records if not record.is_answered))
