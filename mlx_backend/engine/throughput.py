"""Prompt tokens that fit into a time, learned from the chunks that were computed. No MLX, no clock.

The cost of a token grows with what precedes it, so seconds per token are kept by position, in buckets that double. A
chunk also has a fixed cost, above all to read the weights: two chunks of different sizes separate it from the cost of
their tokens. Otherwise small chunks would measure ever dearer, and be planned ever smaller. Chunks come in the sizes of
a short ladder (`planning/chunk_sizes.py`), except the last of a prompt.

A mixture of experts reads more weights for more tokens, until it reads all: its cost is not linear. A line through
small chunks suggests that small ones pay, so the seconds of every size are kept, and a chunk is not smaller than one
that computes its tokens at almost half the best known speed.
"""

from __future__ import annotations

from collections.abc import Collection

from mlx_backend.planning import chunk_sizes

_FIRST_BUCKET_TOKENS = 256
_UNKNOWN_CHUNK_TOKENS = 32
_UNKNOWN_RESTORED_TOKENS = 256
_GROWTH_PER_BUCKET = 1.5
_APART = 1.5
"""Factor between the sizes of two chunks that separates the fixed cost from the cost of tokens."""
_MOST_TOKENS = 1 << 16
_LEAST_SHARE = 0.45
"""Share of the time for prompt tokens while prompts wait, however slow a decode step is: with its part of the step, a
token takes at most 1 / 0.45 of what it takes at the best known speed."""


class ThroughputEstimate:
    """Measured speed: seconds per prefill token by position, and seconds per decode step.

    `pads_to`: the most tokens of a chunk, if chunks are padded up to a size; otherwise None.
    """

    def __init__(self, pads_to: int | None = None) -> None:
        self._pads_to = pads_to
        self._token_s: dict[int, float] = {}
        self._last: dict[int, tuple[int, float]] = {}
        """The newest chunk at each position: its tokens, and its seconds."""
        self._sizes: dict[int, dict[int, float]] = {}
        """Seconds of chunks at each position, by size: the next size of the ladder that is no larger."""
        self._efficient_s: dict[int, float] = {}
        self._efficient_for_s = 0.0
        """Seconds of a decode step for which the efficient chunks were computed."""
        self._fixed_s: float | None = None
        self.restored_token_s: float | None = None
        """Seconds per token that is taken from the prefix cache; None if there was none."""
        self.decode_s = 0.0

    def observe_chunk(self, start: int, num_tokens: int, seconds: float, *, is_known: bool = False) -> None:
        """Record that a chunk of `num_tokens` from position `start` took `seconds`; if it `is_known`, to restore it."""
        seconds = max(seconds, 0.0)
        if is_known:
            self.restored_token_s = _moved(self.restored_token_s, seconds / num_tokens)
            return
        num_tokens = self._num_computed(num_tokens)
        bucket = _bucket(start)
        last = self._last.get(bucket)
        self._last[bucket] = (num_tokens, seconds)
        if last is not None and max(last[0], num_tokens) >= _APART * min(last[0], num_tokens):
            token_s = max((seconds - last[1]) / (num_tokens - last[0]), 0.0)
            fixed_s = min(max(seconds - token_s * num_tokens, 0.0), seconds, last[1])
            if self._fixed_s is None:  # every earlier measurement had it in every token
                self._token_s[bucket] = (seconds - fixed_s) / num_tokens
            self._fixed_s = fixed_s if self._fixed_s is None else (self._fixed_s + fixed_s) / 2
        measured = max(seconds - self.fixed_s, 0.0) / num_tokens
        self._token_s[bucket] = _moved(self._token_s.get(bucket), measured)
        sizes, size = self._sizes.setdefault(bucket, {}), chunk_sizes.round_down(num_tokens)
        sizes[size] = _moved(sizes.get(size), seconds * size / num_tokens)
        self._efficient_s[bucket] = self._efficient(sizes, float("inf"), _MOST_TOKENS)[1]
        self._efficient_for_s = min(self._efficient_for_s or self.decode_s, self.decode_s)

    @property
    def efficient_chunk_s(self) -> float:
        """Return the seconds of the smallest chunk beside a decode step that is efficient, at any position."""
        if abs(self.decode_s - self._efficient_for_s) > 0.1 * self._efficient_for_s:  # called in every step
            for bucket, sizes in self._sizes.items():
                self._efficient_s[bucket] = self._efficient(sizes, float("inf"), _MOST_TOKENS)[1]
            self._efficient_for_s = self.decode_s
        return max(self._efficient_s.values(), default=0.0)

    def efficient_tokens(self, start: int, most_s: float, limit: int) -> int:
        """Return the tokens of the smallest chunk from `start` that is efficient beside a decode step.

        It takes at most `most_s`, and is between 1 and `limit`; 1 if nothing was measured.
        """
        sizes = self._sizes_at(start)
        return self._efficient(sizes, most_s, limit)[0] if sizes else 1

    def _sizes_at(self, start: int) -> dict[int, float]:
        """Return seconds by size at `start`, scaled up from the nearest bucket below; empty if none was measured."""
        if not self._sizes:
            return {}
        nearest, growth = _nearest(self._sizes, start)
        return {size: seconds * growth for size, seconds in self._sizes[nearest].items()}

    def _efficient(self, sizes: dict[int, float], most_s: float, limit: int) -> tuple[int, float]:
        """Return tokens and seconds of the smallest chunk that is efficient, by the seconds of some sizes."""
        best = min(seconds / size for size, seconds in sizes.items())
        size, took_s = 1, _between(sizes, 1, self.fixed_s)
        while size < limit and took_s + self.decode_s > best * size / _LEAST_SHARE:
            larger = min(chunk_sizes.next_size(size), limit)
            longer_s = _between(sizes, larger, self.fixed_s)
            if longer_s > most_s or (longer_s + self.decode_s) * size >= (took_s + self.decode_s) * larger:
                break  # too long, or no cheaper per token
            size, took_s = larger, longer_s
        return size, took_s

    @property
    def fixed_s(self) -> float:
        """Return the seconds that a chunk takes beside its tokens; 0 until chunks of different sizes were measured."""
        return self._fixed_s or 0.0

    @property
    def least_chunk_s(self) -> float:
        """Return the seconds of a chunk beside a decode step that give prompts their least share of the time."""
        return self.fixed_s + _LEAST_SHARE / (1 - _LEAST_SHARE) * (self.decode_s + self.fixed_s)

    def chunk_s(self, start: int, num_tokens: int) -> float | None:
        """Return the seconds of a chunk; None if nothing was measured."""
        token_s, num_tokens = self.token_s(start), self._num_computed(num_tokens)
        if token_s is None:
            return None
        sizes = self._sizes_at(start)
        known_s = _between(sizes, num_tokens, self.fixed_s) if num_tokens <= max(sizes, default=0) else 0.0
        return max(self.fixed_s + token_s * num_tokens, known_s)

    def _num_computed(self, num_tokens: int) -> int:
        return num_tokens if self._pads_to is None else chunk_sizes.padded(num_tokens, self._pads_to)

    def restorable_for(self, seconds: float, limit: int) -> int:
        """Return how many tokens can be restored in at most `seconds`; between 1 and `limit`."""
        if self.restored_token_s is None:
            return min(limit, _UNKNOWN_RESTORED_TOKENS)
        if not self.restored_token_s:
            return limit
        return max(1, int(min(limit, max(seconds, 0.0) / self.restored_token_s)))

    def observe_decode(self, seconds: float) -> None:
        """Record that one decode step took `seconds`."""
        self.decode_s += (0.2 if self.decode_s else 1.0) * (seconds - self.decode_s)

    def tokens_for(self, start: int, seconds: float, limit: int) -> int:
        """Return the tokens of a chunk from `start` that should take at most `seconds`; between 1 and `limit`."""
        token_s = self.token_s(start)
        if token_s is None:
            return max(1, min(limit, _UNKNOWN_CHUNK_TOKENS))
        fitting = int(min(limit, max(seconds - self.fixed_s, 0.0) / token_s)) if token_s > 0 else limit
        last = self._last.get(_bucket(start))
        if self._fixed_s is None and last is not None and last[0] / _APART < fitting < _APART * last[0]:
            fitting = int(last[0] / _APART)  # another size, once, to separate the fixed cost
        return limit if fitting >= limit else chunk_sizes.round_down(max(1, fitting))

    def token_s(self, start: int) -> float | None:
        """Return the seconds per token at `start`, beside a chunk's fixed cost.

        Scaled up from the nearest bucket below if none was measured there; None if nothing was measured at all.
        """
        if not self._token_s:
            return None
        nearest, growth = _nearest(self._token_s, start)
        return self._token_s[nearest] * growth


def _between(sizes: dict[int, float], num_tokens: int, fixed_s: float) -> float:
    """Return the seconds of a chunk, between those of the nearest known sizes; in proportion beyond the largest.

    Below the smallest, between `fixed_s` and its seconds: a chunk is not as dear as a much larger one because no other
    was measured at this position.
    """
    smaller = max((size for size in sizes if size <= num_tokens), default=None)
    larger = min((size for size in sizes if size >= num_tokens), default=None)
    if smaller is None:
        if larger is None:
            return 0.0
        least_s = min(fixed_s, sizes[larger])
        return least_s + num_tokens / larger * (sizes[larger] - least_s)
    if larger is None:
        return sizes[smaller] * num_tokens / smaller
    part = (num_tokens - smaller) / max(larger - smaller, 1)
    return sizes[smaller] + part * (sizes[larger] - sizes[smaller])


def _moved(known: float | None, measured: float) -> float:
    if known is None:
        return measured
    weight = 0.7 if measured > known else 0.3  # believe bad news sooner: the promise is an upper bound
    return known + weight * (measured - known)


def _nearest(known: Collection[int], start: int) -> tuple[int, float]:
    """Return the nearest known bucket below `start`, else the first; and how many times dearer `start` is planned."""
    bucket = _bucket(start)
    nearest = max((each for each in known if each <= bucket), default=min(known))
    return nearest, float(_GROWTH_PER_BUCKET ** max(bucket - nearest, 0))


def _bucket(start: int) -> int:
    return (start // _FIRST_BUCKET_TOKENS).bit_length()
