"""How many prompt tokens fit into a time, learned from the chunks that were computed. No MLX, no clock.

The cost of a token grows with what precedes it, so seconds per token are kept by position, in buckets
that double. A fixed cost per chunk needs no term of its own: a smaller chunk measures dearer per token,
and the next one is sized by that.
"""

from __future__ import annotations

_FIRST_BUCKET_TOKENS = 256
_UNKNOWN_CHUNK_TOKENS = 32
_UNKNOWN_RESTORED_TOKENS = 256
_GROWTH_PER_BUCKET = 1.5
_SIZES_PER_OCTAVE = 8
"""Chunks come in so many sizes between a power of two and the next: repeating sizes find freed buffers that fit."""


class ThroughputEstimate:
    """Measured speed: seconds per prefill token by position, and seconds per decode step."""

    def __init__(self) -> None:
        self._token_s: dict[int, float] = {}
        self.restored_token_s: float | None = None
        """Seconds per token that is taken from the prefix cache; None where none was."""
        self.decode_s = 0.0

    def observe_chunk(self, start: int, num_tokens: int, seconds: float, *, is_known: bool = False) -> None:
        """A chunk of `num_tokens` from position `start` on took `seconds`; to restore, where it `is_known`."""
        measured = max(seconds, 0.0) / num_tokens
        if is_known:
            self.restored_token_s = _moved(self.restored_token_s, measured)
        else:
            bucket = _bucket(start)
            self._token_s[bucket] = _moved(self._token_s.get(bucket), measured)

    def restorable_for(self, seconds: float, limit: int) -> int:
        """Tokens whose restoring should take at most `seconds`; between 1 and `limit`."""
        if self.restored_token_s is None:
            return min(limit, _UNKNOWN_RESTORED_TOKENS)
        if not self.restored_token_s:
            return limit
        return max(1, int(min(limit, max(seconds, 0.0) / self.restored_token_s)))

    def observe_decode(self, seconds: float) -> None:
        """One decode step took `seconds`."""
        self.decode_s += (0.2 if self.decode_s else 1.0) * (seconds - self.decode_s)

    def tokens_for(self, start: int, seconds: float, limit: int) -> int:
        """Tokens of a chunk from `start` that should take at most `seconds`; between 1 and `limit`."""
        token_s = self.token_s(start)
        if token_s is None:
            return max(1, min(limit, _UNKNOWN_CHUNK_TOKENS))
        fitting = int(min(limit, max(seconds, 0.0) / token_s)) if token_s > 0 else limit
        return limit if fitting == limit else max(1, _round_down(fitting))

    def token_s(self, start: int) -> float | None:
        """Seconds per token at `start`; from the nearest bucket below, made dearer, where none was measured."""
        if not self._token_s:
            return None
        bucket = _bucket(start)
        below = [known for known in self._token_s if known <= bucket]
        if not below:
            return self._token_s[min(self._token_s)]
        nearest = max(below)
        return self._token_s[nearest] * float(_GROWTH_PER_BUCKET ** (bucket - nearest))


def _moved(known: float | None, measured: float) -> float:
    if known is None:
        return measured
    weight = 0.7 if measured > known else 0.3  # believe bad news sooner: the promise is an upper bound
    return known + weight * (measured - known)


def _bucket(start: int) -> int:
    return (start // _FIRST_BUCKET_TOKENS).bit_length()


def _round_down(num_tokens: int) -> int:
    step = max(1, (1 << num_tokens.bit_length() >> 1) // _SIZES_PER_OCTAVE)
    return num_tokens - num_tokens % step
