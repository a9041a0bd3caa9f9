"""SharedStore: the blocks of the prefix cache on all ranks. Each rank keeps its arrays under the same ids. No MLX."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlx_backend.api.errors import EngineDead
from mlx_backend.core.blocks import BlockStore
from mlx_backend.core.step import BlockId, BlockRef, PromptId, SequenceId, Span


class SharedStore:
    """`core.blocks.BlockStore` for all ranks; a block's size is its largest on any rank.

    `others`: `token` and `state`, the bytes of a token and of a snapshot, on every other rank. `mirror` makes a call on
    them.
    """

    def __init__(self, store: BlockStore, others: Sequence[Mapping[str, int]], mirror: Callable[..., None]) -> None:
        self._store, self._mirror = store, mirror
        self.kinds, self.cuts = store.kinds, store.cuts
        self.bytes_per_token = max([store.bytes_per_token, *(other["token"] for other in others)])
        self.state_bytes = max([store.state_bytes, *(other["state"] for other in others)])

    def take(self, source: PromptId | SequenceId, spans: Sequence[Span]) -> tuple[BlockRef, ...]:
        refs = self._store.take(source, spans)  # if it fails for want of memory, no other rank takes anything
        self._mirror("take", source=source, spans=tuple(spans), ids=tuple(ref.id for ref in refs))
        return tuple(
            BlockRef(ref.id, max(ref.nbytes, self._most_bytes(span))) for ref, span in zip(refs, spans, strict=True)
        )

    def _most_bytes(self, span: Span) -> int:
        """Return the largest size of a span on any rank; 0 if this rank's shares, and thus its blocks, are largest."""
        if (self.bytes_per_token, self.state_bytes) == (self._store.bytes_per_token, self._store.state_bytes):
            return 0
        return (span.stop - span.start) * self.bytes_per_token + (self.state_bytes if span.with_state else 0)

    def free(self, block: BlockId) -> None:
        self._store.free(block)
        with contextlib.suppress(EngineDead):  # also called on a dead engine; other calls report that
            self._mirror("free", block=block)

    def dump(self, block: BlockId) -> tuple[Any, list[memoryview]]:
        raise NotImplementedError("a rank's blocks stay in memory")

    def load(self, arrays: Any, data: memoryview) -> BlockRef:
        raise NotImplementedError("a rank's blocks stay in memory")
