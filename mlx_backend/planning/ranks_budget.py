"""Admission over several ranks: what fits on every one of them. Pure; no MLX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlx_backend.planning.admission import Budget, Reservation


class RanksBudget(Budget):
    """Budgets of all ranks as one. It admits exactly what every rank admits; for equal ranks it equals any of them.

    Ranks may have room for different numbers of bytes, and requests take different numbers of bytes there. The rank
    with the least room left decides: the limit is the smallest of all, and `held` and `needed` leave as much of it as
    is left on that rank.
    """

    def __init__(self, budgets: Sequence[Budget]) -> None:
        """Take at least one budget. They must not change afterwards, except through `max_groups` of this one."""
        first = max(budgets, key=lambda budget: sum(plan.bytes_per_token for plan in budget.plans))
        self._budgets = tuple(budgets)
        limit = min(budget.limit_bytes for budget in budgets)
        self._more = tuple(budget.limit_bytes - limit for budget in budgets)
        """The bytes that each rank has beyond the smallest limit."""
        super().__init__(first.shape, first.plans, limit)
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

    def step_for(self, claims: Sequence[Reservation], context: int, largest: int) -> int:
        return min(budget.step_for(claims, context, largest) for budget in self._budgets)

    def needed_soon(self, claims: Iterable[Reservation], chunks: Iterable[tuple[int, int]]) -> int:
        asked, sizes = tuple(claims), tuple(chunks)
        return self._fullest([budget.needed_soon(asked, sizes) for budget in self._budgets])

    def _bytes_of(self, claims: tuple[Reservation, ...]) -> tuple[int, int]:
        both = [budget._bytes_of(claims) for budget in self._budgets]
        return self._fullest([held for held, _ in both]), self._fullest([needed for _, needed in both])

    def _fullest(self, sizes: Sequence[int]) -> int:
        """Return the size that leaves as much of the smallest limit as is left on the rank with the least room."""
        return max(size - more for size, more in zip(sizes, self._more, strict=True))
