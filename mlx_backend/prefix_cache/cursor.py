"""Cursor: what the prefix cache remembers of one prompt; and which prompts it is for. No MLX."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_backend.core.sequence import SequenceGroup
from mlx_backend.prefix_cache.identity import Chain
from mlx_backend.prefix_cache.index import Match, Node


@dataclass(slots=True)
class Cursor:
    """What is remembered of one prompt."""

    chain: Chain
    kept: int = 0
    """All blocks before this position are in the tree, or were when they were computed."""
    target: Match | None = None
    """With snapshots: what is being restored, which is of use only as a whole."""
    gave_up: bool = False
    restored: int = 0
    """Position that restoring has come to."""
    planned: tuple[Node, ...] = ()
    """Blocks that a chunk of the current plan is restored from."""
    planned_of: Match | None = None
    """What they are a part of."""


def is_used(group: SequenceGroup) -> bool:
    """Whether a prompt may be restored: not where its own logits are asked for."""
    return is_kept(group) and group.num_top_logprobs is None


def is_kept(group: SequenceGroup) -> bool:
    """Not where its vector is asked for: that is of all tokens' hidden states, and nobody continues its text."""
    return group.request.uses_prefix_cache and not group.request.embeds
