"""Payoff of drafts, and their best number: measured seconds of steps against the measured share of accepted drafts.

A step that verifies drafts takes longer than a plain one. How much longer is measured, by the rows and the tokens of
the step; what is not measured yet lies between the nearest measurements. A row's drafts are accepted one after the
other, so the j-th counts p ** j, with p estimated for the row, from its own drafts and from all of the same confidence.

Of all choices the one with the most tokens a second is taken, as long as no row can lose much by it: each row has an
account of the seconds that drafts have won and cost it, and a step is only taken if the account, with `max_slowdown` of
the row's time, covers the worst case, in which none of its drafts is right. So a row without drafts is not slowed by
those of others, and drafts that are never right end by themselves. What was learned fades, so that they are tried
again.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mlx_backend.drafting.draft_costs import DraftCosts
from mlx_backend.drafting.drafter import NUM_CLASSES, PROMISED
from mlx_backend.kv_cache.allocation import most_step_tokens

_PRIORS = (0.4, 0.6, 0.75, 0.85, 0.7)
"""Share of drafts that are accepted before any was tried, by confidence; the last one: for a draft model."""
_PRIOR_WEIGHT = 2.0
_CLASS_WEIGHT = 3.0
"""Number of a row's drafts that count as much as those of all rows."""
_CLASS_MEMORY, _ROW_MEMORY = 0.98, 0.9
"""Share that an observation leaves of the weight of those before it."""
_FADING = 0.999
"""Share that a plain step leaves of the weight of all observations: they count half after 700 steps."""
_LEAST_GAIN = 1.03
"""Least promised speedup by drafts: measurements are not exact."""
_GRANT_STEPS = 1.0
"""Plain steps that drafts may cost a row before they have won it anything."""
_SLOPE = 0.2
"""Slowdown of a step with twice as many tokens, as long as none was measured."""
_LEAST_WIN, _MOST_LEFT = 2.0, 256
"""Gain that a row must promise, in multiples of the cost to prefill it, and the tokens within which it must."""
_WEIGHT = 0.2
_MOST_SIZES = 256


@dataclass(slots=True)
class Shares:
    """Weighted counts of drafts that were accepted, and of all that were tried."""

    accepted: float = 0.0
    tried: float = 0.0

    def observe(self, num_accepted: int, num_drafted: int, memory: float) -> None:
        """Record a draft. Tokens after the first rejected one are not counted."""
        tried = min(num_accepted + 1, num_drafted)
        self.accepted = self.accepted * memory**tried + num_accepted
        self.tried = self.tried * memory**tried + tried


@dataclass(slots=True)
class Account:
    """Seconds that drafts have won and cost one row."""

    shares: Shares = field(default_factory=Shares)
    balance_s: float = 0.0
    decoded_s: float = 0.0
    """Seconds of all its steps."""

    def allowance_s(self, plain_s: float, max_slowdown: float) -> float:
        """Return the seconds that the row can lose in one step."""
        return self.balance_s + max_slowdown * self.decoded_s + _GRANT_STEPS * plain_s


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row of the next step: its account, and the draft that it could have."""

    account: Account
    num_tokens: int = 0
    confidence: int = 0

    @property
    def is_promised(self) -> bool:
        """Return whether a draft model is needed for it, which takes a step for each token."""
        return self.confidence == PROMISED


class Payoff:
    """Measured steps, and the drafts that pay by them. `max_drafts`: the most drafts of a row in a step."""

    def __init__(self, max_drafts: int, max_slowdown: float) -> None:
        self._max_drafts, self._max_slowdown = max_drafts, max_slowdown
        self._plain_s: dict[int, float] = {}
        self._drafted_s: dict[int, dict[int, float]] = {}
        """Seconds of steps with drafts, by rows, then by tokens."""
        self._classes = [Shares(prior * _PRIOR_WEIGHT, _PRIOR_WEIGHT) for prior in _PRIORS]
        assert len(self._classes) == NUM_CLASSES + 1
        self.costs = DraftCosts()

    # ---- measurements ----

    def observe_plain(self, num_rows: int, seconds: float) -> None:
        """Record the seconds of a step without drafts that was started before the previous one was read."""
        self._plain_s[num_rows] = _moved(self._plain_s.get(num_rows), seconds)
        for each, prior in zip(self._classes, _PRIORS, strict=True):
            each.accepted = _FADING * each.accepted + (1 - _FADING) * prior * _PRIOR_WEIGHT
            each.tried = _FADING * each.tried + (1 - _FADING) * _PRIOR_WEIGHT

    def observe_drafted(self, num_rows: int, num_tokens: int, seconds: float) -> None:
        """Record the seconds, without drafting, of a step that was started after the previous one was read."""
        sizes = self._drafted_s.setdefault(num_rows, {})
        sizes[num_tokens] = _moved(sizes.get(num_tokens), seconds)
        if len(self._drafted_s) > _MOST_SIZES:
            self._drafted_s.pop(next(iter(self._drafted_s)))

    def observe_draft(self, account: Account, confidence: int, num_accepted: int, num_drafted: int) -> None:
        """Record how many of a row's drafts were accepted."""
        account.shares.observe(num_accepted, num_drafted, _ROW_MEMORY)
        self._classes[confidence].observe(num_accepted, num_drafted, _CLASS_MEMORY)

    def settle(self, account: Account, num_rows: int, num_tokens: int, seconds: float) -> float:
        """Book a step with drafts that gave a row `num_tokens`; return the seconds that it won, or lost."""
        won_s = num_tokens * self.plain_s(num_rows) - seconds
        account.balance_s += won_s
        return won_s

    # ---- predictions ----

    def plain_s(self, num_rows: int) -> float:
        """Return the seconds of a step without drafts, for the nearest measured number of rows; 0 if there is none."""
        if num_rows not in self._plain_s:
            nearest = min(self._plain_s, key=lambda rows: abs(rows - num_rows), default=None)
            return 0.0 if nearest is None else self._plain_s[nearest]
        return self._plain_s[num_rows]

    def drafted_s(self, num_rows: int, num_tokens: int) -> float:
        """Return the seconds of a step with drafts: never less for more tokens."""
        return self._step_times(num_rows)(num_tokens)

    def _step_times(self, num_rows: int) -> StepTimes:
        return StepTimes(num_rows, self.plain_s(num_rows), self._drafted_s.get(num_rows, {}))

    def share(self, account: Account, confidence: int) -> float:
        """Return the share of a row's drafts that should be accepted."""
        of_class, own = self._classes[confidence], account.shares
        return (own.accepted + _CLASS_WEIGHT * of_class.accepted / of_class.tried) / (own.tried + _CLASS_WEIGHT)

    # ---- decisions ----

    def choose(self, rows: Sequence[Candidate], *, num_unknown: int = 0) -> list[int]:
        """Return how many of its tokens each row drafts: none for all rows if that pays best.

        `num_unknown`: tokens before a draft that must match the guess, too; promised tokens continue from any.
        """
        num_rows = len(rows)
        plain_s = self.plain_s(num_rows)
        most = most_step_tokens(num_rows, self._max_drafts) // max(num_rows, 1) - 1
        chosen, best = [0] * num_rows, [0] * num_rows
        if not plain_s or most < 1 or not any(row.num_tokens for row in rows):
            return best
        step_times = self._step_times(num_rows)
        most_s = plain_s + min(row.account.allowance_s(plain_s, self._max_slowdown) for row in rows)
        shares = [self.share(row.account, row.confidence) if row.num_tokens else 0.0 for row in rows]
        powers = [1 if row.is_promised else 1 + num_unknown for row in rows]
        worth = [(-(shares[i] ** powers[i]), i) for i, row in enumerate(rows) if row.num_tokens]
        num_asking, num_steps = 0, 0
        heapq.heapify(worth)
        expected, num_tokens, best_rate = float(num_rows), num_rows, _LEAST_GAIN * num_rows / plain_s
        while worth:
            gain, row = heapq.heappop(worth)
            chosen[row] += 1
            expected, num_tokens = expected - gain, num_tokens + 1
            if rows[row].is_promised:
                num_asking, num_steps = num_asking + (chosen[row] == 1), max(num_steps, chosen[row])
            step_s = step_times(num_tokens) + self.costs.steps_s(num_asking, num_steps, plain_s)
            if step_s > most_s:
                break
            if expected / step_s > best_rate:
                best, best_rate = list(chosen), expected / step_s
            if chosen[row] < min(rows[row].num_tokens, most):
                heapq.heappush(worth, (gain * shares[row], row))
        return best

    def invests(self, account: Account, cost_s: float, num_left: int, num_rows: int) -> bool:
        """Return whether a row that could have `num_left` more tokens should win back the cost of its prefill."""
        plain_s = self.plain_s(num_rows)
        win_s = min(num_left, _MOST_LEFT) * plain_s * (1 - 1 / max(self._speedup(account, num_rows), 1e-9))
        return win_s > _LEAST_WIN * cost_s

    def _speedup(self, account: Account, num_rows: int) -> float:
        """Return the expected speedup of rows that all draft as this one, at their best."""
        plain_s, share = self.plain_s(num_rows), self.share(account, PROMISED)
        if not plain_s:
            return 1.0
        step_times, best, expected, gain = self._step_times(num_rows), 1.0, 1.0, share
        for place in range(1, most_step_tokens(num_rows, self._max_drafts) // num_rows):
            expected, gain = expected + gain, gain * share
            took_s = step_times(num_rows * (1 + place)) + self.costs.steps_s(num_rows, place, plain_s)
            best = max(best, expected * plain_s / took_s)
        return best


class StepTimes:
    """Seconds of a step by its tokens, interpolated from measurements: never less for more tokens."""

    def __init__(self, num_rows: int, plain_s: float, measured: Mapping[int, float]) -> None:
        sizes = sorted(({num_rows: plain_s} | dict(measured)).items())
        self._sizes = [size for size, _ in sizes]
        self._seconds = list(itertools.accumulate((seconds for _, seconds in sizes), max))
        self._slope_s = _SLOPE * plain_s / num_rows
        if len(sizes) > 1:
            self._slope_s = max(self._slope_s / 4, (self._seconds[-1] - plain_s) / (self._sizes[-1] - num_rows))

    def __call__(self, num_tokens: int) -> float:
        above = bisect.bisect_left(self._sizes, num_tokens)
        if above == len(self._sizes):
            return self._seconds[-1] + self._slope_s * (num_tokens - self._sizes[-1])
        if self._sizes[above] == num_tokens or above == 0:
            return self._seconds[above]
        below = above - 1
        part = (num_tokens - self._sizes[below]) / (self._sizes[above] - self._sizes[below])
        return self._seconds[below] + part * (self._seconds[above] - self._seconds[below])


def _moved(known: float | None, measured: float) -> float:
    return measured if known is None else known + _WEIGHT * (measured - known)
