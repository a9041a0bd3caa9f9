"""MockStore: blocks that contain only their tokens. Restoring one checks that it fits the prompt."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

from mlx_backend.core.step import BlockId, BlockRef, Chunk, PromptId, SequenceId, Span


class MockStore:
    """`core.blocks.BlockStore` of the mock runner. `tokens_of`: the tokens of a prompt or a row."""

    kinds: tuple[tuple[str, str], ...] = (("mock", "by the token"),)
    cuts = True
    state_bytes = 0

    def __init__(self, bytes_per_token: int, tokens_of: Callable[[PromptId | SequenceId], Sequence[int]]) -> None:
        self.bytes_per_token, self._tokens_of = bytes_per_token, tokens_of
        self._blocks: dict[BlockId, tuple[int, ...]] = {}
        self._num_made = 0

    def take(self, source: PromptId | SequenceId, spans: Sequence[Span]) -> tuple[BlockRef, ...]:
        token_ids = self._tokens_of(source)
        return tuple(self._hold(tuple(token_ids[span.start : span.stop])) for span in spans)

    def _hold(self, token_ids: tuple[int, ...]) -> BlockRef:
        self._num_made += 1
        self._blocks[self._num_made] = token_ids
        return BlockRef(self._num_made, len(token_ids) * self.bytes_per_token)

    def free(self, block: BlockId) -> None:
        del self._blocks[block]

    def restore(self, chunk: Chunk) -> None:
        """Check that the chunk's blocks have its tokens."""
        assert chunk.restore is not None
        for piece in chunk.restore.pieces:
            held = self._blocks[piece.block][piece.start - piece.block_start : piece.stop - piece.block_start]
            wanted = chunk.token_ids[piece.start - chunk.start : piece.stop - chunk.start]
            assert held == wanted, "a block of other tokens"

    def dump(self, block: BlockId) -> tuple[Any, list[memoryview]]:
        return None, [memoryview(array("I", self._blocks[block]).tobytes())]

    def load(self, arrays: Any, data: memoryview) -> BlockRef:
        token_ids = array("I")
        token_ids.frombytes(data)
        return self._hold(tuple(token_ids))
