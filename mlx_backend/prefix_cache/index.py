"""The tree of stored blocks: their order, their tiers, and their eviction. No MLX, no files.

A node is a block: its tokens and, for each tier, bytes. A node in neither tier leaves the tree, with all that follow
it. In each tier the least recently used leaf is evicted first, system prompts last. Using a block uses all before it:
only the last one is marked. A block stays as long as one that follows it, and then takes over its mark.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mlx_backend.core.step import BlockId, BlockRef
from mlx_backend.prefix_cache.identity import Chain, chain_id

Tier = Literal["ram", "disk"]

_LAST_ID = b"\xff" * 32
"""Sorts after every block's id."""


@dataclass(slots=True, eq=False)
class Node:
    """A block. `payload`: its content in the RAM tier."""

    id: bytes
    parent: Node | None
    token_ids: tuple[int, ...]
    start: int = 0
    """Position of its first token."""
    has_state: bool = False
    """Whether it ends with a snapshot of caches that cannot be cut."""
    is_system: bool = False
    payload: BlockRef | None = None
    sizes: dict[Tier, int] = field(default_factory=dict)
    """Bytes in each tier that has it."""
    children: dict[bytes, Node] = field(default_factory=dict)
    ordered: list[tuple[tuple[int, ...], bytes]] = field(default_factory=list)
    """The children's tokens and ids, sorted by tokens, so that those with most in common are neighbours."""
    num_followers: dict[Tier, int] = field(default_factory=dict)
    """Number of children in each tier."""
    used_at: int = 0
    """Time of last use, of it or of evicted blocks that followed it, on the index's own clock."""

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Match:
    """Blocks in their order and the position up to which they match, which may be within the last one."""

    nodes: tuple[Node, ...] = ()
    end: int = 0


class _Shelf:
    """One tier: its bytes, and heaps of its leaves by eviction order, in which outdated entries are skipped."""

    _SLACK = 64

    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self.num_bytes = self.num_blocks = self._num_pushed = 0
        self._heaps: dict[bool, list[tuple[int, int, Node]]] = {False: [], True: []}
        """(time of last use, a number that distinguishes entries, a leaf); False: others, True: system prompts."""

    def push(self, node: Node) -> None:
        """Record a block that is a leaf, or has been used as one."""
        if self._tier not in node.sizes or node.num_followers.get(self._tier):
            return
        heap = self._heaps[node.is_system]
        self._num_pushed += 1
        heapq.heappush(heap, (node.used_at, self._num_pushed, node))
        if len(heap) > 4 * self.num_blocks + self._SLACK:
            kept = {entry[2]: entry for entry in heap if self._is_current(entry, node.is_system)}
            heap[:] = kept.values()
            heapq.heapify(heap)

    def _is_current(self, entry: tuple[int, int, Node], is_system: bool) -> bool:
        used_at, _, node = entry
        is_leaf = self._tier in node.sizes and not node.num_followers.get(self._tier)
        return is_leaf and node.used_at == used_at and node.is_system == is_system

    def oldest(self) -> Node | None:
        for is_system, heap in self._heaps.items():
            while heap and not self._is_current(heap[0], is_system):
                heapq.heappop(heap)
            if heap:
                return heap[0][2]
        return None


class PrefixIndex:
    """`cuts`: blocks may be used in part. Otherwise a match ends at a snapshot. `free` releases a payload."""

    def __init__(self, *, cuts: bool = True, free: Callable[[BlockId], None] = lambda block: None) -> None:
        self._cuts, self._free = cuts, free
        self._nodes: dict[bytes, Node] = {}
        self._roots: dict[bytes, Node] = {}
        self._shelves: dict[Tier, _Shelf] = {"ram": _Shelf("ram"), "disk": _Shelf("disk")}
        self._clock = 0
        self.dropped: list[Node] = []
        """Blocks that are no longer on disk, for the owner of their files."""

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def get(self, block_id: bytes) -> Node | None:
        """Return a block, or the root of a chain."""
        return self._nodes.get(block_id) or self._roots.get(block_id)

    def num_bytes(self, tier: Tier) -> int:
        return self._shelves[tier].num_bytes

    def count(self, tier: Tier) -> int:
        return self._shelves[tier].num_blocks

    # ---- finding ----

    def match(self, chain: Chain, position: int, limit: int) -> Match:
        """Return the blocks of `chain`, from that of `position` on, which match beyond `position`, at most to `limit`.

        All before them must be in the tree already. Blocks on disk count.
        """
        block = position // chain.size
        path: list[Node] = []
        best = Match()
        parent = self.get(chain.before(block))
        while parent is not None:
            if not self._cuts:
                best = self._snapshot(parent, path, chain, limit) or best
            node = self._nodes.get(chain.ids[block]) if block < len(chain.ids) else None
            if node is None or node.end > limit:
                break
            path.append(node)
            if node.has_state:
                best = Match(tuple(path), node.end)
            parent, block = node, block + 1
        if self._cuts and parent is not None:
            best = self._longest(parent, path, chain, limit)
        return best if best.end > position else Match()

    def _snapshot(self, parent: Node, path: Sequence[Node], chain: Chain, limit: int) -> Match | None:
        """Return the match with the furthest snapshot in a short block after `parent`."""
        rest = tuple(chain.token_ids[parent.end : min(parent.end + chain.size, limit)])
        for child in self._beginnings(parent, rest):
            if child.has_state and len(child.token_ids) < chain.size:
                return Match((*path, child), child.end)
        return None

    def _beginnings(self, parent: Node, token_ids: tuple[int, ...]) -> Iterator[Node]:
        """Yield the blocks after `parent` with which these tokens begin, the longest first."""
        place = bisect_left(parent.ordered, (token_ids, _LAST_ID))
        while place and token_ids:
            place -= 1
            held, block_id = parent.ordered[place]
            common = _num_common(held, token_ids)
            if common == len(held):
                yield parent.children[block_id]
            else:  # shorter beginnings stand before blocks with less in common
                token_ids = token_ids[:common]
                place = bisect_left(parent.ordered, (token_ids, _LAST_ID))

    def _longest(self, parent: Node, path: Sequence[Node], chain: Chain, limit: int) -> Match:
        """Return the path, extended by the matching part of the block after `parent` that matches most."""
        rest = tuple(chain.token_ids[parent.end : min(parent.end + chain.size, limit)])
        place = bisect_left(parent.ordered, (rest, b""))
        common, child = 0, None
        for held, block_id in parent.ordered[max(place - 1, 0) : place + 1]:  # the best match is next to it
            if (number := _num_common(held, rest)) > common:
                common, child = number, parent.children[block_id]
        return Match(tuple(path) if child is None else (*path, child), parent.end + common)

    # ---- adding ----

    def root(self, root: bytes) -> Node:
        """Return the root from which chains of this id start; it holds nothing."""
        return self._roots.setdefault(root, Node(root, None, ()))

    def add(self, parent: Node, token_ids: Sequence[int], *, has_state: bool = False, is_system: bool = False) -> Node:
        """Return the block that follows `parent`, added in no tier (`place` it at once) unless it exists."""
        block_id = chain_id(parent.id, token_ids)
        node = self._nodes.get(block_id)
        if is_system:
            self.mark_system(parent if node is None else node)
        if node is None:
            if parent.parent is None:
                self._roots[parent.id] = parent  # it may have gone with its last block
            node = Node(block_id, parent, tuple(token_ids), parent.end, has_state, is_system)
            self._nodes[block_id] = parent.children[block_id] = node
            insort(parent.ordered, (node.token_ids, block_id))
        return node

    def place(self, node: Node, tier: Tier, num_bytes: int, payload: BlockRef | None = None) -> None:
        """Put a block into a tier, as the one used last."""
        self._leave(node, tier)
        shelf = self._shelves[tier]
        node.sizes[tier] = num_bytes
        if tier == "ram":
            node.payload = payload
        shelf.num_bytes += num_bytes
        shelf.num_blocks += 1
        if node.parent is not None:
            node.parent.num_followers[tier] = node.parent.num_followers.get(tier, 0) + 1
        self.touch(node)
        if self._cuts:
            self._drop_shorter(node)

    def _drop_shorter(self, node: Node) -> None:
        """Drop shorter blocks that a longer one begins with, and so covers."""
        assert node.parent is not None
        for sibling in list(self._beginnings(node.parent, node.token_ids)):
            if sibling is not node and not sibling.children and node.sizes.keys() >= sibling.sizes.keys():
                self.drop(sibling)

    def covers(self, parent: Node, token_ids: Sequence[int]) -> bool:
        """Return whether a block after `parent` begins with these tokens, so that a block of them adds nothing."""
        wanted = tuple(token_ids)
        place = bisect_left(parent.ordered, (wanted, b""))
        following = parent.ordered[place : place + 1]
        return self._cuts and any(held[: len(wanted)] == wanted for held, _ in following)

    def touch(self, node: Node) -> None:
        """Mark a block, and so all before it, as used."""
        self._clock += 1
        node.used_at = self._clock
        for tier in node.sizes:
            self._shelves[tier].push(node)

    def mark_system(self, node: Node) -> None:
        """Mark a block, and all before it, as part of a system prompt."""
        used: Node | None = node
        while used is not None and used.parent is not None and not used.is_system:
            used.is_system = True
            for tier in used.sizes:
                self._shelves[tier].push(used)
            used = used.parent
        if used is not node:
            self.touch(node)

    # ---- evicting ----

    def shed(self, tier: Tier, most_bytes: int, keeping: Node | None = None) -> int:
        """Drop the oldest leaves of a tier until it holds no more than `most_bytes`; return their number.

        Stops at `keeping`, the block used last: nothing is dropped for a block that follows it.
        """
        shelf = self._shelves[tier]
        num_shed = 0
        while shelf.num_bytes > max(most_bytes, 0):
            node = shelf.oldest()
            assert node is not None, "bytes without a block"
            if node is keeping:
                break
            self._leave(node, tier)
            num_shed += 1
            if tier == "disk":
                self.dropped.append(node)
            if not node.sizes:
                self.drop(node)
        return num_shed

    def leave(self, node: Node, tier: Tier) -> None:
        """Take a block out of this tier."""
        self._leave(node, tier)
        if not node.sizes:
            self.drop(node)

    def drop(self, node: Node) -> None:
        """Take a block out of the tree, with all that follow it."""
        waiting = [node]
        while waiting:
            gone = waiting.pop()
            waiting += gone.children.values()
            if "disk" in gone.sizes:
                self.dropped.append(gone)
            for tier in tuple(gone.sizes):
                self._leave(gone, tier)
            self._nodes.pop(gone.id, None)
        if node.parent is not None and node.parent.children.pop(node.id, None) is not None:
            node.parent.ordered.pop(bisect_left(node.parent.ordered, (node.token_ids, node.id)))
            if node.parent.parent is None and not node.parent.children:
                self._roots.pop(node.parent.id, None)

    def _leave(self, node: Node, tier: Tier) -> None:
        if tier not in node.sizes:
            return
        shelf = self._shelves[tier]
        shelf.num_bytes -= node.sizes.pop(tier)
        shelf.num_blocks -= 1
        if node.parent is not None:
            node.parent.num_followers[tier] -= 1
            node.parent.used_at = max(node.parent.used_at, node.used_at)
            for each in node.parent.sizes:
                self._shelves[each].push(node.parent)
        if tier == "ram" and node.payload is not None:
            self._free(node.payload.id)
            node.payload = None


def _num_common(one: Sequence[int], other: Sequence[int]) -> int:
    most = min(len(one), len(other))
    return next((place for place in range(most) if one[place] != other[place]), most)
