"""One request as its client saw it. Knows neither HTTP nor MLX: a server's answer and a raw run make the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Record:
    """Times are seconds of the client's own clock; only their differences mean anything."""

    sent_s: float
    stamps: tuple[float, ...] = ()
    """When each piece of text arrived."""
    num_output_tokens: int = 0
    num_cached_tokens: int | None = None
    error: str | None = None

    @property
    def is_answered(self) -> bool:
        """Whether text came, and the answer came to its end."""
        return self.error is None and bool(self.stamps)

    @property
    def ttft_s(self) -> float | None:
        """From sending to the first text."""
        return self.stamps[0] - self.sent_s if self.stamps else None

    @property
    def decode_tok_s(self) -> float | None:
        """Tokens a second from the first text to the last; None for an answer of one piece."""
        if len(self.stamps) < 2 or self.stamps[-1] <= self.stamps[0]:
            return None
        return (self.num_output_tokens - 1) / (self.stamps[-1] - self.stamps[0])

    def gaps(self, after_s: float = float("-inf")) -> Iterator[float]:
        """Seconds between one text and the next, of those that ended later than `after_s`."""
        return (later - earlier for earlier, later in pairwise(self.stamps) if later > after_s)
