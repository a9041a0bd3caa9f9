"""Row: a sequence in a runner's batch. Owned by the runner that made it; the engine never sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlx_backend.api.interface import SamplingParams
from mlx_backend.core.step import NewRow, SequenceId


@dataclass(slots=True, eq=False)
class Row:
    """A runner's state of a decoding sequence."""

    new: NewRow
    num_started_tokens: int
    """Outputs with a started step."""
    caches: list[Any] | None = None
    """The KV cache of its prompt, from the time the row is planned until it has joined the batch; None if empty."""
    is_last: bool = True
    """Whether no other row will continue the same caches."""

    @classmethod
    def of(cls, new: NewRow, caches: list[Any] | None = None, *, is_last: bool = True) -> Row:
        return cls(new, len(new.output_ids), caches, is_last)

    @property
    def id(self) -> SequenceId:
        return self.new.id

    @property
    def sampling(self) -> SamplingParams:
        return self.new.sampling

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self.new.prompt_ids

    @property
    def output_ids(self) -> tuple[int, ...]:
        """Outputs with which the row joined."""
        return self.new.output_ids

    @property
    def stop_ids(self) -> frozenset[int]:
        return self.new.stop_ids

    @property
    def num_computed_tokens(self) -> int:
        """Tokens in the KV cache once every started step is done."""
        return len(self.new.prompt_ids) - 1 + self.num_started_tokens

    @property
    def last_token(self) -> int:
        """The input of its first step."""
        return self.new.output_ids[-1] if self.new.output_ids else self.new.prompt_ids[-1]

    @property
    def is_short(self) -> bool:
        """Whether the output is too short to end with the token that is drawn next."""
        return self.num_started_tokens < self.new.min_tokens
