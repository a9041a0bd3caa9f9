"""Pairing: the messages of a decode step. Pure.

While rows decode without a break, rank 0 alternately starts a step and collects the previous one. Then the collect is
sent with the start, so that a step takes one message. The other ranks make the same calls in the same order.
"""

from __future__ import annotations

from mlx_backend.core.step import StepPlan


class Pairing:
    """The calls of rank 0 that were sent to the others."""

    def __init__(self) -> None:
        self._num_in_flight = 0
        self._num_said = 0
        """Collects that were sent with a start, and that rank 0 has not made yet."""

    def start(self, plan: StepPlan) -> bool:
        """Return whether the collect of the previous step is sent with this start."""
        if not plan.decodes:
            return False
        goes_along = self._num_in_flight > self._num_said
        self._num_in_flight += 1
        self._num_said += goes_along
        return goes_along

    def collect(self) -> bool:
        """Return whether this collect needs a separate message."""
        self._num_in_flight -= 1
        if self._num_said == 0:
            return True
        self._num_said -= 1
        return False

    def idle(self) -> None:
        """Forget the steps in flight, as runners do."""
        self._num_in_flight = self._num_said = 0
