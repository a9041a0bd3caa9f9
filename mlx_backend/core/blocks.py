"""BlockStore: the prefix cache's interface to the runner that holds its blocks. No MLX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mlx_backend.core.step import BlockId, BlockRef, PromptId, SequenceId, Span


class BlockStore(Protocol):
    """The blocks of KV cache that a runner holds for the prefix cache, by id."""

    kinds: tuple[tuple[str, str], ...]
    """(kind of KV cache, how it is kept)."""
    cuts: bool
    """Whether all caches can be cut anywhere; otherwise some are kept as snapshots."""
    bytes_per_token: int
    state_bytes: int
    """Largest size of a snapshot."""

    def take(self, source: PromptId | SequenceId, spans: Sequence[Span]) -> tuple[BlockRef, ...]:
        """Copy spans of a prompt's caches, or of a row's. Raises RuntimeError or MemoryError if memory is short."""

    def free(self, block: BlockId) -> None:
        """Release a block."""

    def dump(self, block: BlockId) -> tuple[Any, list[memoryview]]:
        """Return the description for `load`, for JSON, and the bytes, which stay valid after the block is freed."""

    def load(self, arrays: Any, data: memoryview) -> BlockRef:
        """Hold a block again. Raises ValueError, KeyError or TypeError if description and bytes do not match."""
