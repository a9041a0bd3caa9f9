"""The tree of blocks that are kept: which follow which, in what tier, and which goes first. No MLX, no files.

A node is a block: its tokens and, for each tier, bytes. A node in neither tier is no longer in the tree, nor is
what follows it. In each tier the least recently used leaf goes first, system prompts last: whoever uses a block uses
all before it, and touching them from the last to the first keeps every order such that the oldest is a leaf.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mlx_backend.core.step import BlockId, BlockRef
from mlx_backend.prefix_cache.identity import Chain, chain_id

Tier = Literal["ram", "disk"]


@dataclass(slots=True, eq=False)
class Node:
    """A block. `payload` is what the RAM tier holds of it."""

    id: bytes
    parent: Node | None
    token_ids: tuple[int, ...]
    start: int = 0
    """Position of its first token."""
    has_state: bool = False
    """It ends with a snapshot of what cannot be cut."""
    is_system: bool = False
    payload: BlockRef | None = None
    sizes: dict[Tier, int] = field(default_factory=dict)
    """Bytes in each tier that has it."""
    children: dict[bytes, Node] = field(default_factory=dict)

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Match:
    """Blocks in their order and the position up to which they are of use: perhaps not the whole of the last."""

    nodes: tuple[Node, ...] = ()
    end: int = 0


@dataclass(slots=True)
class _Shelf:
    """One tier: its bytes, and its blocks from the one that goes first."""

    num_bytes: int = 0
    common: OrderedDict[Node, None] = field(default_factory=OrderedDict)
    system: OrderedDict[Node, None] = field(default_factory=OrderedDict)

    def order(self, node: Node) -> OrderedDict[Node, None]:
        return self.system if node.is_system else self.common

    def oldest(self) -> Node | None:
        return next(iter(self.common), None) or next(iter(self.system), None)


class PrefixIndex:
    """`cuts`: blocks may be used in part. Else a match ends where a snapshot is. `free` lets go of a payload."""

    def __init__(self, *, cuts: bool = True, free: Callable[[BlockId], None] = lambda block: None) -> None:
        self._cuts, self._free = cuts, free
        self._nodes: dict[bytes, Node] = {}
        self._roots: dict[bytes, Node] = {}
        self._shelves: dict[Tier, _Shelf] = {"ram": _Shelf(), "disk": _Shelf()}
        self.dropped: list[Node] = []
        """Blocks that are no longer on disk, for whoever has their files."""

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def get(self, block_id: bytes) -> Node | None:
        """A block, or the root of a chain."""
        return self._nodes.get(block_id) or self._roots.get(block_id)

    def num_bytes(self, tier: Tier) -> int:
        return self._shelves[tier].num_bytes

    def count(self, tier: Tier) -> int:
        shelf = self._shelves[tier]
        return len(shelf.common) + len(shelf.system)

    # ---- finding ----

    def match(self, chain: Chain, position: int, limit: int) -> Match:
        """The blocks of `chain` from the one that holds `position` on, that lead further than it, at most to `limit`.

        All before them must be known already. Blocks on disk count.
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
        """The furthest snapshot in a short block after `parent`."""
        rest = tuple(chain.token_ids[parent.end : min(parent.end + chain.size, limit)])
        whole = [
            child
            for child in parent.children.values()
            if child.has_state and len(child.token_ids) < chain.size and child.token_ids == rest[: len(child.token_ids)]
        ]
        if not whole:
            return None
        furthest = max(whole, key=lambda child: child.end)
        return Match((*path, furthest), furthest.end)

    def _longest(self, parent: Node, path: Sequence[Node], chain: Chain, limit: int) -> Match:
        """The path, and of the block after `parent` that has most of what follows so much."""
        rest = tuple(chain.token_ids[parent.end : min(parent.end + chain.size, limit)])
        common, child = 0, None
        for other in parent.children.values():
            if (number := _num_common(other.token_ids, rest)) > common:
                common, child = number, other
        return Match(tuple(path) if child is None else (*path, child), parent.end + common)

    # ---- adding ----

    def root(self, root: bytes) -> Node:
        """Where chains of this id begin; it holds nothing."""
        return self._roots.setdefault(root, Node(root, None, ()))

    def add(self, parent: Node, token_ids: Sequence[int], *, has_state: bool = False, is_system: bool = False) -> Node:
        """A block that follows `parent`, in no tier yet: `place` it at once. One that is there is returned as it is."""
        block_id = chain_id(parent.id, token_ids)
        node = self._nodes.get(block_id)
        if is_system:
            self.mark_system(parent if node is None else node)
        if node is None:
            if parent.parent is None:
                self._roots[parent.id] = parent  # it may have gone with its last block
            node = Node(block_id, parent, tuple(token_ids), parent.end, has_state, is_system)
            self._nodes[block_id] = parent.children[block_id] = node
        return node

    def place(self, node: Node, tier: Tier, num_bytes: int, payload: BlockRef | None = None) -> None:
        """Have a block in a tier, as the one that was used last."""
        self._leave(node, tier)
        shelf = self._shelves[tier]
        node.sizes[tier] = num_bytes
        if tier == "ram":
            node.payload = payload
        shelf.num_bytes += num_bytes
        shelf.order(node)[node] = None
        self.touch(node)
        if self._cuts:
            self._drop_shorter(node)

    def _drop_shorter(self, node: Node) -> None:
        """What a block says that begins like a longer one, the longer one says, too."""
        assert node.parent is not None
        for sibling in list(node.parent.children.values()):
            size = len(sibling.token_ids)
            is_shorter = size < len(node.token_ids) and not sibling.children
            if is_shorter and node.sizes.keys() >= sibling.sizes.keys() and node.token_ids[:size] == sibling.token_ids:
                self.drop(sibling)

    def covers(self, parent: Node, token_ids: Sequence[int]) -> bool:
        """Whether a block after `parent` begins with these tokens, so that one of them alone says nothing new."""
        wanted = tuple(token_ids)
        children = parent.children.values()
        return self._cuts and any(child.token_ids[: len(wanted)] == wanted for child in children)

    def touch(self, node: Node) -> None:
        """It is used, and all before it."""
        used: Node | None = node
        while used is not None and used.parent is not None:
            for tier in used.sizes:
                self._shelves[tier].order(used).move_to_end(used)
            used = used.parent

    def mark_system(self, node: Node) -> None:
        """It belongs to a system prompt, as all before it do."""
        used: Node | None = node
        while used is not None and used.parent is not None and not used.is_system:
            for tier in used.sizes:
                del self._shelves[tier].common[used]
                self._shelves[tier].system[used] = None
            used.is_system = True
            used = used.parent
        if used is not node:
            self.touch(node)

    # ---- going ----

    def shed(self, tier: Tier, most_bytes: int, keeping: Node | None = None) -> int:
        """Drop the oldest leaves of a tier until it holds no more; how many that were.

        Where `keeping`, the block used last, would be next, it ends: nothing is dropped for what follows it.
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
        """It is no longer in this tier."""
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
        if node.parent is not None:
            node.parent.children.pop(node.id, None)
            if node.parent.parent is None and not node.parent.children:
                self._roots.pop(node.parent.id, None)

    def _leave(self, node: Node, tier: Tier) -> None:
        if tier not in node.sizes:
            return
        shelf = self._shelves[tier]
        shelf.num_bytes -= node.sizes.pop(tier)
        del shelf.order(node)[node]
        if tier == "ram" and node.payload is not None:
            self._free(node.payload.id)
            node.payload = None


def _num_common(one: Sequence[int], other: Sequence[int]) -> int:
    most = min(len(one), len(other))
    return next((place for place in range(most) if one[place] != other[place]), most)
