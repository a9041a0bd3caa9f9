"""PrefixMatch: the prefix cache's answer about a prompt, used to plan its chunks. No MLX."""

from __future__ import annotations

from dataclasses import dataclass


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
