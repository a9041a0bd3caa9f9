"""States of a sampler's parts for rows that go on from others: with drafts behind them, or with those that are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mlx_backend.core.row import Row

State = TypeVar("State")
StateOut = TypeVar("StateOut", covariant=True)


class Part(Protocol[StateOut]):
    """A part of a sampler that keeps a state of each row that asked for it."""

    def knows(self, row: Row) -> bool:
        """Whether it has the row's state."""

    def state_after(self, row: Row, token_ids: Sequence[int]) -> StateOut:
        """Return the state of a row that puts out these tokens next."""


Sources = Mapping[Row, tuple[Row, tuple[int, ...]]]
"""Of a row: the one that it goes on from, and the tokens behind it."""


@dataclass(frozen=True, slots=True)
class Continued(Generic[State]):
    """The states of `sources`, out of a part that knows the rows they go on from."""

    part: Part[State]
    sources: Sources

    def knows(self, row: Row) -> bool:
        return row in self.sources and self.part.knows(self.sources[row][0])

    def state_of(self, row: Row) -> State:
        source, token_ids = self.sources[row]
        return self.part.state_after(source, token_ids)
