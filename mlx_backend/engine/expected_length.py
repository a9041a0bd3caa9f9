"""The output length to expect of a request, learned from those that have finished. No MLX, no clock.

A high quantile of the recent lengths, conditioned on what is already written: a sequence that is longer than most is
expected to be as long as most of those that became longer still. Requests with `max_tokens` of the same magnitude are
one kind, so that a thousand answers of one word do not affect chats without a limit.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from math import ceil

PRIOR = (16, 64, 128, 192, 256, 384, 512, 768, 1024, 2048)
"""Lengths that stand in for finished requests until there are enough of them: roughly those of chats."""
_QUANTILE = 0.75
"""About the mean where a few lengths are much longer than most. A higher quantile admits fewer requests without need:
the longest are expected to keep growing, and all others are padded to them."""
_MOST_KEPT = 256
_FEW = 4
_GROWTH = 1.5
"""Factor by which a sequence is expected to grow at least if fewer than `_FEW` longer ones are known."""
_BITS_PER_KIND = 2
"""`max_tokens` within a factor of 4 are one kind."""


class ExpectedLength:
    """Lengths of the last finished requests, by kind. Each kind begins with `PRIOR` and keeps a bounded number."""

    def __init__(self) -> None:
        self._kinds: dict[int, _Lengths] = {}

    def observe(self, max_tokens: int, num_tokens: int) -> None:
        """Record that a sequence limited to `max_tokens` finished with `num_tokens`."""
        if max_tokens:
            self._kinds.setdefault(_kind(max_tokens), _Lengths()).add(num_tokens)

    def expect(self, max_tokens: int, num_written: int = 0) -> int:
        """Return the length to expect of a sequence that has `num_written` tokens: more than that, within bounds."""
        lengths = self._kinds.get(_kind(max_tokens), _NONE)
        return min(max_tokens, max(lengths.expect(num_written), num_written + 1))


class _Lengths:
    """Recent lengths of one kind: by age, and sorted."""

    def __init__(self) -> None:
        self._by_age = deque(PRIOR)
        self._in_order = list(PRIOR)

    def add(self, num_tokens: int) -> None:
        if len(self._by_age) >= _MOST_KEPT:
            del self._in_order[bisect_left(self._in_order, self._by_age.popleft())]
        self._by_age.append(num_tokens)
        insort(self._in_order, num_tokens)

    def expect(self, num_written: int) -> int:
        first = bisect_right(self._in_order, num_written)
        num_longer = len(self._in_order) - first
        length = self._in_order[first + ceil(_QUANTILE * num_longer) - 1] if num_longer else 0
        return length if num_longer >= _FEW else max(length, int(_GROWTH * num_written))


_NONE = _Lengths()


def _kind(max_tokens: int) -> int:
    return max_tokens.bit_length() // _BITS_PER_KIND
