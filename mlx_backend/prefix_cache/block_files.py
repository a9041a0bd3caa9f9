"""BlockFiles: keeps the tree and the folder in step. Owned by the device thread; the DiskTier does the I/O."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from mlx_backend.core.blocks import BlockStore
from mlx_backend.core.step import BlockRef
from mlx_backend.prefix_cache.disk import DiskTier, Read, Written
from mlx_backend.prefix_cache.files import Header, file_bytes
from mlx_backend.prefix_cache.identity import chain_id
from mlx_backend.prefix_cache.index import Node, PrefixIndex

logger = logging.getLogger("pippin.prefix_cache")

_MOST_BYTES = 64 << 20
"""Bytes of blocks that wait for the disk at once; they stay in memory meanwhile, even if evicted there."""
_SLACK = 64
"""Blocks that may wait beyond those in memory, before the ones that left memory are removed."""


class BlockFiles:
    """Files of the blocks in the tree. `max_bytes`: of all models in the folder together."""

    def __init__(self, disk: DiskTier, index: PrefixIndex, store: BlockStore, max_bytes: int) -> None:
        """Read the folder. Raises OSError if it cannot be used."""
        self._disk, self._index, self._store = disk, index, store
        self._unwritten: deque[Node] = deque()
        self._writing: dict[bytes, int] = {}
        """Bytes of the files that the I/O thread is to write, and their sum."""
        self._num_writing_bytes = 0
        self._outdated: set[bytes] = set()
        """Those of them to be written again, because their content has grown since."""
        self._max_bytes = max_bytes
        self.num_evicted = 0
        """Blocks removed because the folder was full."""
        self._read_folder()
        self._shed()
        self._max_bytes -= disk.make_room_beside(index.num_bytes("disk"), max_bytes)

    @property
    def has_news(self) -> bool:
        """Whether `poll` has something to do."""
        return self._disk.has_results or (bool(self._unwritten) and not self._writing)

    def add(self, node: Node) -> None:
        """Schedule a block for writing; it is skipped if it has left memory by then."""
        if node.id in self._writing:
            self._outdated.add(node.id)
        else:
            self._enqueue(node)

    def _enqueue(self, node: Node) -> None:
        self._unwritten.append(node)
        if len(self._unwritten) > 2 * self._index.count("ram") + _SLACK:  # a slow disk, and most have left memory
            self._unwritten = deque(dict.fromkeys(each for each in self._unwritten if each.payload is not None))

    def rewrite(self, node: Node) -> None:
        """Remove the file of a block, which is no longer complete."""
        if "disk" in node.sizes:
            self._index.leave(node, "disk")
            self._disk.remove([node.id])

    def used(self, nodes: Collection[Node]) -> None:
        """Record the use of blocks on disk, and schedule those again that could not be written when they were new."""
        self._disk.used([node.id for node in nodes if "disk" in node.sizes])
        for node in nodes:
            if node.payload is not None and "disk" not in node.sizes and node.id not in self._writing:
                self._enqueue(node)

    def forget(self) -> None:
        """Remove the files of blocks that have left the tree, or its disk tier."""
        self._disk.remove([node.id for node in self._index.dropped])
        self._index.dropped.clear()

    def poll(self, arrived: Callable[[Node | None, bytes, BlockRef | None], None]) -> None:
        """Process the I/O thread's results and give it more to write. `arrived` is called for each block it read."""
        for result in self._disk.results():
            if isinstance(result, Written):
                self._take_written(result)
            else:
                arrived(self._index.get(result.id), result.id, self._take_read(result))
        self._write_more(max(1, min(_MOST_BYTES, self._max_bytes // 2)))

    def close(self) -> None:
        """Write all waiting blocks."""
        self._write_more(sys.maxsize)
        self._disk.close()

    def _take_written(self, written: Written) -> None:
        self._num_writing_bytes -= self._writing.pop(written.id)
        is_outdated = written.id in self._outdated
        self._outdated.discard(written.id)
        if written.num_bytes is None:
            return
        node = self._index.get(written.id)
        if node is None or is_outdated:
            self._disk.remove([written.id])
            if node is not None:
                self._enqueue(node)
            return
        self._index.place(node, "disk", written.num_bytes)
        self._shed()

    def _take_read(self, read: Read) -> BlockRef | None:
        if read.block is not None:
            try:
                return self._store.load(read.block[0].arrays, read.block[1])
            except (ValueError, KeyError, TypeError, RuntimeError, MemoryError) as error:
                logger.warning("the prefix cache cannot use %s: %s", read.id.hex(), error)
        node = self._index.get(read.id)
        if node is not None and "disk" in node.sizes:
            self._index.leave(node, "disk")
            self._disk.remove([read.id])
            self.forget()
        return None

    def _write_more(self, most_bytes: int) -> None:
        self.forget()  # first, so that a block that comes again is on disk in the end
        while self._unwritten and self._num_writing_bytes < most_bytes:
            node = self._unwritten.popleft()
            if node.payload is not None and "disk" not in node.sizes and node.id not in self._writing:
                self._write(node)

    def _write(self, node: Node) -> None:
        assert node.payload is not None, "only what is in memory is written"
        try:
            arrays, buffers = self._store.dump(node.payload.id)
        except (RuntimeError, MemoryError) as error:
            logger.warning("the prefix cache drops what it cannot read from memory: %s", error)
            self._index.drop(node)
            return
        header = _header(node, arrays, sum(buffer.nbytes for buffer in buffers))
        size = file_bytes(header)
        if self._make_room(node, size):
            self._writing[node.id] = size
            self._num_writing_bytes += size
            self._disk.write(header, buffers)

    def _make_room(self, node: Node, num_bytes: int) -> bool:
        """Remove older files and return whether its file has room; never for a file without its parent."""
        parent = node.parent
        assert parent is not None, "a root is not written"
        if parent.parent is not None and "disk" not in parent.sizes and parent.id not in self._writing:
            return False
        most = self._max_bytes - self._num_writing_bytes - num_bytes
        if most < 0:
            return False
        while parent is not None and "disk" not in parent.sizes:
            parent = parent.parent
        self._index.touch(node)  # so that no block that it follows is removed
        self.num_evicted += self._index.shed("disk", most, parent)
        self.forget()
        return self._index.num_bytes("disk") <= most

    def _read_folder(self) -> None:
        """Add the blocks of an earlier run that have their parents."""
        placed: list[tuple[float, Node]] = []
        orphans: list[bytes] = []
        index = self._index
        for header, size, used_at in sorted(self._disk.open(), key=lambda each: each[0].start):
            is_whole = bool(header.token_ids) and header.id == chain_id(header.parent, header.token_ids)
            parent = index.root(header.parent) if is_whole and header.start == 0 else index.get(header.parent)
            if parent is None or not is_whole or parent.end != header.start:
                orphans.append(header.id)
                continue
            node = index.add(parent, header.token_ids, has_state=header.has_state, is_system=header.is_system)
            index.place(node, "disk", size)
            placed.append((used_at, node))
        for _, node in sorted(placed, key=lambda each: each[0]):
            if index.get(node.id) is node and not node.children:
                index.touch(node)
        self._disk.remove(orphans)

    def _shed(self) -> None:
        self.num_evicted += self._index.shed("disk", self._max_bytes)
        self.forget()


def _header(node: Node, arrays: Any, num_bytes: int) -> Header:
    assert node.parent is not None, "a root is not written"
    return Header(
        id=node.id,
        parent=node.parent.id,
        start=node.start,
        token_ids=node.token_ids,
        has_state=node.has_state,
        is_system=node.is_system,
        arrays=arrays,
        num_bytes=num_bytes,
    )
