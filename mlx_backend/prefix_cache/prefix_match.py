"""PrefixMatch: the prefix cache's answer about a prompt, used to plan its chunks. No MLX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mlx_backend.core.sequence import SequenceGroup
from mlx_backend.core.step import Restore


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """Match of a prompt's tokens from the first that is not computed."""

    restorable_until: int = 0
    """Position before which all can be restored."""
    waits: bool = False
    """Whether matching blocks are being read from the disk."""
    stop_at: int | None = None
    """Position at which a chunk ends at the latest."""
    key: bytes | None = None
    """Prompts with the same key compute the same: one computes, and the others use the result."""
    starts_again: bool = False
    """Whether the part restored so far is useless, so that the prompt is computed from its first token."""


class PrefixView(Protocol):
    """Interface of the prefix cache for the scheduler."""

    def match(self, group: SequenceGroup) -> PrefixMatch:
        """Return the match for the tokens that follow the computed part of a prompt."""

    def pieces(self, group: SequenceGroup, stop: int) -> Restore | None:
        """Return the blocks that restore a prompt from its computed part to `stop`; None if some were evicted."""
