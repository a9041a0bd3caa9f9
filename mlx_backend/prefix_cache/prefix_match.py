"""PrefixMatch: what the prefix cache says of a prompt to whoever plans its chunks. No MLX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mlx_backend.core.sequence import SequenceGroup
from mlx_backend.core.step import Restore


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """What is known of a prompt's tokens from the first that is not computed on."""

    restorable_until: int = 0
    """Position before which all is there to be restored."""
    waits: bool = False
    """What is known is on its way from the disk."""
    stop_at: int | None = None
    """Position at which a chunk ends at the latest."""
    key: bytes | None = None
    """Of two prompts with the same key one is computed, and the other has it then."""
    starts_again: bool = False
    """What was restored of it so far is of no use: it is computed from its first token on."""


class PrefixView(Protocol):
    """The prefix cache, as far as the scheduler asks it."""

    def match(self, group: SequenceGroup) -> PrefixMatch:
        """Return what is known of the tokens that follow the computed part of a prompt."""

    def pieces(self, group: SequenceGroup, stop: int) -> Restore | None:
        """The blocks that restore a prompt from its computed part up to `stop`; None where some have gone."""
