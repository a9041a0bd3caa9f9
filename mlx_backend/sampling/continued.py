"""States of a sampler's parts for rows that continue others: with drafts after them, or with the accepted ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mlx_backend.core.row import Row

State = TypeVar("State")
StateOut = TypeVar("StateOut", covariant=True)


class Part(Protocol[StateOut]):
    """A part of a sampler that keeps a state for each row that needs one."""

    def knows(self, row: Row) -> bool:
        """Return whether it holds the row's state."""

    def state_after(self, row: Row, token_ids: Sequence[int]) -> StateOut:
        """Return the state of a row after these further output tokens."""


Sources = Mapping[Row, tuple[Row, tuple[int, ...]]]
"""For each row: the row that it continues, and the tokens after that one."""


@dataclass(frozen=True, slots=True)
class Continued(Generic[State]):
    """States of `sources`, taken from a part that holds the rows they continue."""

    part: Part[State]
    sources: Sources

    def knows(self, row: Row) -> bool:
        return row in self.sources and self.part.knows(self.sources[row][0])

    def state_of(self, row: Row) -> State:
        source, token_ids = self.sources[row]
        return self.part.state_after(source, token_ids)
