"""Duration of a decode step by its number of rows, learned from measured steps. No MLX, no clock."""

from __future__ import annotations

_WEIGHT = 0.2
"""Weight of a new measurement against those before it."""


class StepTimes:
    """Seconds of a decode step, by rows; between and beyond measured numbers, an estimate."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def observe(self, num_rows: int, seconds: float) -> None:
        """Record the measured seconds of a step of `num_rows`."""
        known = self._seconds.get(num_rows)
        self._seconds[num_rows] = seconds if known is None else known + _WEIGHT * (seconds - known)

    def estimate(self, num_rows: int) -> float | None:
        """Return the seconds of a step; None if no step of so few rows was measured.

        Beyond the largest measured number, every row is taken to be as slow as the average one.
        """
        smaller = max((n for n in self._seconds if n <= num_rows), default=None)
        if smaller is None:
            return None
        larger = min((n for n in self._seconds if n >= num_rows), default=None)
        low_s = self._seconds[smaller]
        if larger is None:
            return low_s * num_rows / smaller
        part = (num_rows - smaller) / max(larger - smaller, 1)
        return low_s + part * max(self._seconds[larger] - low_s, 0.0)

    def rows_within(self, most: int, seconds: float) -> int:
        """Return how many rows, at most `most`, a step may have to take `seconds`; `most` if nothing was measured."""
        found = most
        while found and (self.estimate(found) or 0.0) > seconds:
            found -= 1
        return found

    def most_rows(self, num_rows: int, most: int, factor: float) -> int:
        """Return how many rows, at most `most`, may join a step of `num_rows` for `factor` of its time."""
        alone_s = self.estimate(num_rows)
        if alone_s is None:
            return 0
        found = 0
        while found < most and (self.estimate(num_rows + found + 1) or 0.0) <= factor * alone_s:
            found += 1
        return found
