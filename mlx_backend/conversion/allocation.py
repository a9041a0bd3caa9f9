"""Allocation: the formats with the least loss that fit a number of bytes. Pure; no MLX.

Each weight has options, each with its bytes and its loss; losses add up. The options on the lower convex hull are a
chain of upgrades. All weights' upgrades, the one that saves most loss per byte first, are taken until the next does not
fit: that is optimal for the bytes taken. It never exceeds the budget, and more bytes never give more loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mlx_backend.conversion.spec import Spec


class BudgetTooSmall(ValueError):
    """Raised if even the smallest options exceed the budget; `least_bytes`: their size."""

    def __init__(self, least_bytes: int) -> None:
        super().__init__(f"at least {least_bytes} bytes are needed")
        self.least_bytes = least_bytes


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store a weight."""

    spec: Spec | None
    num_bytes: int
    loss: float


def allocate(options: Mapping[str, Sequence[Option]], budget_bytes: int) -> dict[str, Option]:
    """Return an option for each weight, by path; together they fit the budget. Raises BudgetTooSmall."""
    hulls = {path: hull(choices) for path, choices in options.items()}
    chosen = {path: chain[0] for path, chain in hulls.items()}
    taken = sum(option.num_bytes for option in chosen.values())
    if taken > budget_bytes:
        raise BudgetTooSmall(taken)
    upgrades = [
        (_gain(before, after), place, path, after)
        for path, chain in hulls.items()
        for place, (before, after) in enumerate(pairwise(chain))
    ]
    # within a chain, earlier upgrades gain more per byte; between equal gains, the order of the weights decides
    upgrades.sort(key=lambda each: (-each[0], each[1]))
    for _, _, path, after in upgrades:
        more = after.num_bytes - chosen[path].num_bytes
        if taken + more > budget_bytes:
            break
        taken += more
        chosen[path] = after
    return chosen


def least_bytes(options: Mapping[str, Sequence[Option]]) -> int:
    """Return the bytes of the smallest options."""
    return sum(min(option.num_bytes for option in choices) for choices in options.values())


def hull(options: Sequence[Option]) -> list[Option]:
    """Return the options on the lower convex hull of loss by bytes, the smallest first."""
    found: list[Option] = []
    for option in sorted(options, key=lambda each: (each.num_bytes, each.loss)):
        if found and option.loss >= found[-1].loss:
            continue
        if found and option.num_bytes == found[-1].num_bytes:
            continue
        while len(found) > 1 and _gain(found[-2], found[-1]) <= _gain(found[-1], option):
            found.pop()
        found.append(option)
    return found


def _gain(before: Option, after: Option) -> float:
    return (before.loss - after.loss) / (after.num_bytes - before.num_bytes)
