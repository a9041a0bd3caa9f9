"""The gain of speculation that is to be expected: the time of a step that verifies guesses, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_backend.kv_cache.plan import CachePlan
from mlx_backend.planning.machines import Machine
from mlx_backend.planning.memory import ModelShape
from mlx_backend.planning.planner import decode_speed

NUMBERS = (1, 2, 4, 8)
"""Guesses of a step that are planned."""
CONTEXT = 8192
SHARES = (0.5, 0.95)
"""Guesses that come true: of an ordinary text and of an edit of a text that is there."""


@dataclass(frozen=True, slots=True)
class Verification:
    """A step that verifies `num_drafts` of each user takes `step_ratio` times as long as a plain one."""

    num_drafts: int
    step_ratio: float

    def gain(self, share: float) -> float:
        """Return how many times as fast a user's answer comes where each guess comes true with the probability `share`.

        A step yields 1 + p + … + p**k tokens (Leviathan et al. 2023, arXiv 2211.17192, equation 1).
        """
        return float(sum(share**place for place in range(self.num_drafts + 1)) / self.step_ratio)


def plan_verification(
    shape: ModelShape, plans: Sequence[CachePlan], machine: Machine, num_users: int = 1
) -> tuple[Verification, ...]:
    """Return what verifying costs, for each of NUMBERS; nothing where the machine's speed is unknown."""
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


def best_gain(verifications: Sequence[Verification], share: float) -> float:
    """Return the gain of the best number of guesses, none among them."""
    return max([1.0, *(each.gain(share) for each in verifications)])
