"""Loading: reads from the disk, for one prompt at a time. Owned by the device thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from mlx_backend.core.sequence import SequenceGroup
from mlx_backend.core.step import BlockId, BlockRef
from mlx_backend.prefix_cache.disk import DiskTier
from mlx_backend.prefix_cache.index import Node

_MOST_BYTES = 64 << 20
"""Bytes read ahead of being restored: they are in no tier meanwhile."""
_PATIENCE_S = 10.0
"""Time without a block after which the disk is not waited for."""


class Loading:
    """One prompt's blocks being read; `payloads` are those that have arrived. `free` releases one."""

    def __init__(self, disk: DiskTier | None, free: Callable[[BlockId], None]) -> None:
        self._disk, self._free = disk, free
        self._prefill: SequenceGroup | None = None
        self._wanted: set[bytes] = set()
        self._heard_at = 0.0
        self._given_up: set[bytes] = set()
        self.payloads: dict[Node, BlockRef] = {}

    def want(self, group: SequenceGroup, nodes: Sequence[Node]) -> bool:
        """Start reading these, as many as allowed at once; return False if computing is better."""
        if self._wanted and time.monotonic() - self._heard_at > _PATIENCE_S:
            self._given_up |= self._wanted
            self._let_go()
        if self._disk is None or nodes[0].id in self._given_up:
            return False
        if self._wanted or self._prefill not in (None, group):
            return True  # its turn comes
        size, ids = 0, list[bytes]()
        for node in nodes:
            size += node.sizes.get("disk", 0)
            if node.payload is None and node not in self.payloads:
                if "disk" not in node.sizes or (ids and size > _MOST_BYTES):
                    break
                ids.append(node.id)
        if not ids:
            return False
        self._prefill, self._wanted, self._heard_at = group, set(ids), time.monotonic()
        self._disk.read(ids)
        return True

    def arrived(self, node: Node | None, block_id: bytes, payload: BlockRef | None) -> None:
        """Take a block that was read; None: it could not be."""
        self._heard_at = time.monotonic()
        self._given_up.discard(block_id)
        is_wanted = block_id in self._wanted
        self._wanted.discard(block_id)
        if is_wanted and node is not None and payload is not None:
            self.payloads[node] = payload
        elif payload is not None:
            self._free(payload.id)

    def leave(self, group: SequenceGroup) -> None:
        """Release the blocks of a prompt that continues by computing: they block others."""
        if self._prefill is group and not self._wanted:
            self._let_go()

    def drop(self, group: SequenceGroup) -> None:
        """Release the blocks of a prompt that has left, those still to arrive included."""
        if self._prefill is group:
            self._let_go()

    def drop_unwanted(self) -> None:
        """Release blocks read for a prompt that needs no more of them."""
        if self._prefill is None or self._wanted:
            return
        if not self._prefill.is_wanted or self._prefill.num_remaining_tokens == 0 or not self.payloads:
            self._let_go()

    def _let_go(self) -> None:
        self._prefill = None
        self._wanted = set()
        for payload in self.payloads.values():
            self._free(payload.id)
        self.payloads = {}
