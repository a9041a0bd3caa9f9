"""Admission over several ranks: what fits every one of them. Pure; no MLX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlx_backend.planning.admission import Budget, Reservation


class RanksBudget(Budget):
    """Budgets of all ranks as one: what it admits, each of them admits. For equal ranks it is that of any of them.

    Its limit is the smallest, and what requests take is the most that they take on any rank.
    """

    def __init__(self, budgets: Sequence[Budget]) -> None:
        """At least one. They must not be changed afterwards, but by `max_groups` of this one."""
        first = max(budgets, key=lambda budget: sum(plan.bytes_per_token for plan in budget.plans))
        self._budgets = tuple(budgets)
        super().__init__(first.shape, first.plans, min(budget.limit_bytes for budget in budgets))
        self.max_groups = min(budget.max_groups for budget in budgets)

    @property
    def max_groups(self) -> int:
        return min(budget.max_groups for budget in self._budgets)

    @max_groups.setter
    def max_groups(self, value: int) -> None:
        for budget in self._budgets:
            budget.max_groups = value

    def batch_bytes(self, lengths: Sequence[int]) -> int:
        return max(budget.batch_bytes(lengths) for budget in self._budgets)

    def _bytes_of(self, claims: tuple[Reservation, ...]) -> tuple[int, int]:
        both = [budget._bytes_of(claims) for budget in self._budgets]
        return max(held for held, _ in both), max(needed for _, needed in both)

    def _chunk(self, step: int, context: int) -> int:
        return max(budget._chunk(step, context) for budget in self._budgets)

    def needed_soon(self, claims: Iterable[Reservation], chunks: Iterable[tuple[int, int]]) -> int:
        asked, sizes = tuple(claims), tuple(chunks)
        return max(budget.needed_soon(asked, sizes) for budget in self._budgets)
