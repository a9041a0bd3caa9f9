"""Cursor: the prefix cache's state for one prompt; and predicates of the prompts that use the cache. No MLX."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_backend.core.sequence import SequenceGroup
from mlx_backend.prefix_cache.identity import Chain
from mlx_backend.prefix_cache.index import Match, Node


@dataclass(slots=True)
class Cursor:
    """State of one prompt."""

    chain: Chain
    kept: int = 0
    """Position before which all blocks are in the tree, or were when they were computed."""
    target: Match | None = None
    """With snapshots: the match being restored, which is useful only as a whole."""
    gave_up: bool = False
    restored: int = 0
    """Position that restoring has reached."""
    planned: tuple[Node, ...] = ()
    """Blocks from which a chunk of the current plan is restored."""
    planned_of: Match | None = None
    """The match that contains them."""


def is_used(group: SequenceGroup) -> bool:
    """Return whether a prompt may be restored: not if its own logits are requested."""
    return is_kept(group) and group.num_top_logprobs is None


def is_kept(group: SequenceGroup) -> bool:
    """Return whether a prompt is stored: not for embeddings, which need all hidden states and are never continued."""
    return group.request.uses_prefix_cache and not group.request.embeds
