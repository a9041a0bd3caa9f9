"""BlockStore: the prefix cache's door to the runner that holds its blocks. No MLX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mlx_backend.core.step import BlockId, BlockRef, PromptId, SequenceId, Span


class BlockStore(Protocol):
    """The blocks of KV cache that a runner holds for the prefix cache, by id."""

    kinds: tuple[tuple[str, str], ...]
    """(a kind of KV cache, how it is kept)."""
    cuts: bool
    """All caches can be cut anywhere; else some are kept as snapshots."""
    bytes_per_token: int
    state_bytes: int
    """The size of a snapshot, at most."""

    def take(self, source: PromptId | SequenceId, spans: Sequence[Span]) -> tuple[BlockRef, ...]:
        """Copy spans of a prompt's caches, or of a row's. Raises RuntimeError, MemoryError where memory is short."""

    def free(self, block: BlockId) -> None:
        """Let go of a block."""

    def dump(self, block: BlockId) -> tuple[Any, list[memoryview]]:
        """Return what `load` needs to know, for JSON, and the bytes; these stay whole when the block is freed."""

    def load(self, arrays: Any, data: memoryview) -> BlockRef:
        """Raises ValueError, KeyError or TypeError where they do not fit together."""
