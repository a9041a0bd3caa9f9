"""Expected gain of speculation: the time of a step that verifies drafts, and the tokens it yields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_backend.kv_cache.plan import CachePlan
from mlx_backend.planning.machines import Machine
from mlx_backend.planning.memory import ModelShape
from mlx_backend.planning.planner import decode_speed

NUMBERS = (1, 2, 4, 8)
"""Drafts per step that are planned."""
CONTEXT = 8192
SHARES = (0.5, 0.95)
"""Shares of drafts that are accepted: in ordinary text, and in edits of a given text."""


_MOST_PER_DRAFT = 0.7
"""Share of a plain step, for each draft: two positions took 1.70 of the time of one on an M2 Pro, with 4-bit weights.
MLX's quantized products of few rows read the weights for each row."""


@dataclass(frozen=True, slots=True)
class Verification:
    """Time of a step that verifies `num_drafts` per user: `step_ratio` to `most_ratio` of a plain one."""

    num_drafts: int
    step_ratio: float
    """Ratio if every required weight is read once."""

    @property
    def most_ratio(self) -> float:
        """Ratio if products of few rows take as long as on the slowest machine that was measured."""
        return max(self.step_ratio, 1.0 + _MOST_PER_DRAFT * self.num_drafts)

    def gain(self, share: float) -> float:
        """Return the factor by which a user's answer is faster if `share` is the probability that a draft is accepted.

        A step yields 1 + p + … + p**k tokens (Leviathan et al. 2023, arXiv 2211.17192, equation 1).
        """
        return self._tokens(share) / self.step_ratio

    def least_gain(self, share: float) -> float:
        """Return the same for a step that takes `most_ratio`."""
        return self._tokens(share) / self.most_ratio

    def _tokens(self, share: float) -> float:
        return float(sum(share**place for place in range(self.num_drafts + 1)))


def plan_verification(
    shape: ModelShape, plans: Sequence[CachePlan], machine: Machine, num_users: int = 1
) -> tuple[Verification, ...]:
    """Return the cost of verification, for each of NUMBERS; nothing if the machine's speed is unknown."""
    context = min(CONTEXT, shape.context_length)
    plain = decode_speed(shape, plans, machine, context, num_users)
    if plain is None:
        return ()
    found = []
    for number in NUMBERS:
        drafted = decode_speed(shape, plans, machine, context, num_users, num_drafts=number * num_users)
        assert drafted is not None, "the machine's speed is known"
        found.append(Verification(number, plain.value / drafted.value))
    return tuple(found)


def gain_range(verifications: Sequence[Verification]) -> tuple[float, float]:
    """Return the gain of the best number of drafts, which may be none, in the least and the most favourable case."""
    least, most = SHARES
    return (
        max([1.0, *(each.least_gain(least) for each in verifications)]),
        max([1.0, *(each.gain(most) for each in verifications)]),
    )
