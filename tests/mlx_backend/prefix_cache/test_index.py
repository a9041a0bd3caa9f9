"""The tree of blocks against a plain record of what was put into it, and what it promises of its order."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlx_backend.core.step import BlockId, BlockRef
from mlx_backend.prefix_cache.identity import Chain, chain_id
from mlx_backend.prefix_cache.index import Match, Node, PrefixIndex, Tier

SIZE = 3
TIERS: tuple[Tier, ...] = get_args(Tier)
ROOTS = (b"one", b"two")
BLOCK_IDS = itertools.count(1)
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=13).map(tuple)


def prefix(node: Node) -> tuple[int, ...]:
    """All tokens up to the end of a block."""
    return () if node.parent is None else (*prefix(node.parent), *node.token_ids)


def root_of(node: Node) -> bytes:
    return node.id if node.parent is None else root_of(node.parent)


def num_common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


class Trees(RuleBasedStateMachine):
    """Blocks come as the prefix cache brings them: all full ones of a sequence in order, then perhaps a short one."""

    @initialize(cuts=st.booleans())
    def begin(self, cuts: bool) -> None:
        self.cuts = cuts
        self.index = PrefixIndex(cuts=cuts, free=self.free)
        self.blocks: set[BlockId] = set()
        self.num_blocks = 0
        self.files: set[bytes] = set()
        self.used_at: dict[Node, int] = {}
        self.clock = 0

    def free(self, block: BlockId) -> None:
        self.blocks.remove(block)

    def nodes(self, tier: Tier) -> list[Node]:
        return [node for node in self.index if tier in node.sizes]

    def use(self, node: Node) -> None:
        self.clock += 1
        used: Node | None = node
        while used is not None:
            self.used_at[used] = self.clock
            used = used.parent

    def payload(self, size: int) -> BlockRef:
        self.num_blocks += 1
        self.blocks.add(self.num_blocks)
        return BlockRef(self.num_blocks, size)

    def put(self, parent: Node, tokens: tuple[int, ...], tier: Tier, size: int, has_state: bool, border: int) -> Node:
        is_system = parent.end + len(tokens) <= border
        known = {node for node in self.index if node.is_system}
        node = self.index.add(parent, tokens, has_state=has_state, is_system=is_system)
        if {each for each in self.index if each.is_system} - known - {node}:
            self.use(parent)  # became a system prompt's just now
        if tier == "ram" and has_state:
            node.has_state = True
        self.index.place(node, tier, size, self.payload(size) if tier == "ram" else None)
        self.use(node)
        if tier == "disk":
            self.files.add(node.id)
        return node

    @rule(
        root=st.sampled_from(ROOTS),
        tokens=TOKENS,
        tier=st.sampled_from(TIERS),
        size=st.integers(0, 9),
        has_end=st.booleans(),
        border=st.sampled_from([0, 0, 3, 4, 6]),
    )
    def keep(self, root: bytes, tokens: tuple[int, ...], tier: Tier, size: int, has_end: bool, border: int) -> None:
        last = len(tokens) // SIZE * SIZE
        if not last and not has_end:
            return
        parent = self.index.root(root)
        for start in range(0, last, SIZE):
            with_state = not self.cuts and has_end and start + SIZE == len(tokens)
            parent = self.put(parent, tokens[start : start + SIZE], tier, size, with_state, border)
        rest = tokens[last:]
        if rest and has_end and not self.index.covers(parent, rest):
            self.put(parent, rest, tier, size, not self.cuts, border)

    @rule(data=st.data(), tier=st.sampled_from(TIERS))
    def lose(self, data: st.DataObject, tier: Tier) -> None:
        """A file that is damaged; a payload that goes."""
        if found := self.nodes(tier):
            node = data.draw(st.sampled_from(found))
            self.index.leave(node, tier)
            if tier == "disk":
                self.files.discard(node.id)

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if found := list(self.index):
            node = data.draw(st.sampled_from(found))
            self.index.drop(node)
            assert self.index.get(node.id) is None

    @rule(data=st.data())
    def touch(self, data: st.DataObject) -> None:
        if found := list(self.index):
            node = data.draw(st.sampled_from(found))
            self.index.touch(node)
            self.use(node)

    @rule(data=st.data())
    def mark_system(self, data: st.DataObject) -> None:
        if found := [node for node in self.index if not node.is_system]:
            node = data.draw(st.sampled_from(found))
            self.index.mark_system(node)
            self.use(node)

    @precondition(lambda self: self.clock)
    @rule(tier=st.sampled_from(TIERS), share=st.floats(0, 1))
    def shed(self, tier: Tier, share: float) -> None:
        most = int(self.index.num_bytes(tier) * share)
        self.index.shed(tier, most)
        assert self.index.num_bytes(tier) <= most

    @precondition(lambda self: self.clock)
    @rule(tier=st.sampled_from(TIERS))
    def shed_one(self, tier: Tier) -> None:
        """The one that goes is the least recently used, system prompts last, and nothing in its tier follows it."""
        sized = [node for node in self.nodes(tier)]
        if not self.index.num_bytes(tier):
            return
        self.index.shed(tier, self.index.num_bytes(tier) - 1)
        gone = [node for node in sized if tier not in node.sizes]
        assert gone
        for node in gone:
            for other in self.nodes(tier):
                assert (node.is_system, self.used_at[node]) <= (other.is_system, self.used_at[other])

    @rule(root=st.sampled_from(ROOTS), tokens=TOKENS, data=st.data())
    def look(self, root: bytes, tokens: tuple[int, ...], data: st.DataObject) -> None:
        if found := list(self.index):
            node = data.draw(st.sampled_from(found))  # of which the tokens begin alike
            root, tokens = root_of(node), (*prefix(node), *tokens)
        limit = data.draw(st.integers(0, len(tokens)))
        position = data.draw(st.integers(0, limit))
        match = self.index.match(Chain(root, tokens, SIZE), position, limit)
        expected = self.longest(root, tokens, position, limit)
        assert match.end == (expected if expected > position else 0)
        self.check_match(match, root, tokens, position, limit)

    def longest(self, root: bytes, tokens: tuple[int, ...], position: int, limit: int) -> int:
        before = position // SIZE * SIZE
        if before and not any(root_of(node) == root and prefix(node) == tokens[:before] for node in self.index):
            return 0
        ends = [0]
        for node in self.index:
            if root_of(node) == root:
                held = prefix(node)
                shared = num_common(held, tokens[:limit])
                if self.cuts and shared > node.start:
                    ends.append(shared)
                elif node.has_state and shared == node.end:
                    ends.append(node.end)
        return max(ends)

    def check_match(self, match: Match, root: bytes, tokens: tuple[int, ...], position: int, limit: int) -> None:
        if not match.nodes:
            assert match == Match()
            return
        assert position < match.end <= limit
        assert match.nodes[0].start <= position < match.nodes[0].end
        assert match.nodes[-1].start < match.end <= match.nodes[-1].end
        held = prefix(match.nodes[-1])
        assert root_of(match.nodes[-1]) == root
        assert held[: match.end] == tokens[: match.end]
        for one, following in itertools.pairwise(match.nodes):
            assert following.parent is one
        for node in match.nodes:
            assert self.index.get(node.id) is node
            assert node.sizes
        if not self.cuts:
            assert match.nodes[-1].has_state
            assert match.nodes[-1].end == match.end

    @invariant()
    def counts_and_bytes_are_those_of_the_blocks(self) -> None:
        for tier in TIERS:
            held = self.nodes(tier)
            assert self.index.num_bytes(tier) == sum(node.sizes[tier] for node in held)
            assert self.index.count(tier) == len(held)
        for node in self.index:
            assert (node.payload is not None) == ("ram" in node.sizes)

    @invariant()
    def a_block_is_freed_when_it_leaves_memory_and_not_before(self) -> None:
        held = [node.payload.id for node in self.index if node.payload is not None]
        assert sorted(held) == sorted(self.blocks)

    @invariant()
    def nothing_unreachable_stays(self) -> None:
        for node in self.index:
            assert node.sizes
            assert node.parent is not None
            assert node.id == chain_id(node.parent.id, node.token_ids)
            assert node.parent.children[node.id] is node
            assert self.index.get(node.parent.id) is node.parent
            assert node.start == node.parent.end
            assert len(node.token_ids) == SIZE or not node.children
            assert all(self.index.get(child.id) is child for child in node.children.values())

    @invariant()
    def a_root_without_blocks_is_forgotten(self) -> None:
        assert {root_of(node) for node in self.index} == set(self.index._roots)

    @invariant()
    def what_goes_first_is_a_leaf(self) -> None:
        for tier in TIERS:
            oldest = self.index._shelves[tier].oldest()
            if oldest is not None:
                assert not any(tier in child.sizes for child in oldest.children.values())

    @invariant()
    def what_a_system_prompt_follows_is_of_it(self) -> None:
        for node in self.index:
            assert not node.is_system or node.parent is None or node.parent.parent is None or node.parent.is_system

    @invariant()
    def each_lost_file_is_told_of_once(self) -> None:
        dropped = [node.id for node in self.index.dropped]
        assert len(dropped) == len(set(dropped))
        assert self.files >= set(dropped)
        self.files -= set(dropped)
        self.index.dropped.clear()
        assert self.files == {node.id for node in self.nodes("disk")}


TestTrees = Trees.TestCase
TestTrees.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)


def tree(*sequences: str, border: int = 0) -> PrefixIndex:
    """Letters are tokens, four to a block; all in memory, ten bytes each."""
    index = PrefixIndex()
    for sequence in sequences:
        node = index.root(b"root")
        for start in range(0, len(sequence), 4):
            tokens = [ord(letter) for letter in sequence[start : start + 4]]
            node = index.add(node, tokens, is_system=start + len(tokens) <= border)
            index.place(node, "ram", 10, BlockRef(next(BLOCK_IDS), 10))
    return index


def held(index: PrefixIndex) -> list[str]:
    return sorted("".join(map(chr, prefix(node))) for node in index)


def test_what_two_share_is_held_once() -> None:
    index = tree("systuser", "systothr")
    assert held(index) == ["syst", "systothr", "systuser"]
    assert index.num_bytes("ram") == 30


def test_the_least_recently_used_leaf_goes_first() -> None:
    index = tree("aaaabbbb", "aaaacccc", "dddd")
    index.shed("ram", 30)
    assert held(index) == ["aaaa", "aaaacccc", "dddd"]
    index.shed("ram", 20)
    assert held(index) == ["aaaa", "dddd"]


def test_system_prompts_go_last() -> None:
    index = tree("systaaaa", border=4)
    for other in ("bbbbcccc", "dddd"):
        node = index.root(b"root")
        for start in range(0, len(other), 4):
            node = index.add(node, [ord(letter) for letter in other[start : start + 4]])
            index.place(node, "ram", 10, BlockRef(next(BLOCK_IDS), 10))
    index.shed("ram", 10)
    assert held(index) == ["syst"]


def test_a_system_prompt_that_goes_on_after_what_nobody_called_one_is_not_lost_with_it() -> None:
    index = tree("systprom")
    index.add(next(node for node in index if node.end == 8), [1, 2, 3, 4], is_system=True)
    assert all(node.is_system for node in index if node.end <= 8)


def test_nothing_is_dropped_for_what_follows_it() -> None:
    index = tree("aaaabbbb", "cccc")
    keeping = next(node for node in index if node.end == 8)
    index.touch(keeping)
    assert index.shed("ram", 0, keeping) == 1
    assert held(index) == ["aaaa", "aaaabbbb"]


def test_a_root_that_went_with_its_last_block_comes_back_with_the_next() -> None:
    index = tree("aaaa")
    root = index.root(b"root")
    index.shed("ram", 0)
    assert index.get(b"root") is None
    node = index.add(root, [1, 2, 3, 4])
    index.place(node, "ram", 10, BlockRef(next(BLOCK_IDS), 10))
    assert index.get(b"root") is root
    assert index.match(Chain(b"root", (1, 2, 3, 4, 5), 4), 0, 4) == Match((node,), 4)


def test_a_longer_block_takes_the_place_of_a_shorter_one_that_begins_it() -> None:
    index = tree("aaaabb", "aaaabbbb")
    assert held(index) == ["aaaa", "aaaabbbb"]
    assert index.covers(index.get(Chain(b"root", [97] * 4, 4).ids[0]), [98])  # type: ignore[arg-type]


@pytest.mark.parametrize("tier", TIERS)
def test_a_tier_that_is_empty_sheds_nothing(tier: Tier) -> None:
    assert PrefixIndex().shed(tier, 0) == 0


@pytest.mark.parametrize(("tier", "stays"), [("ram", True), ("disk", False)])
def test_a_shorter_block_stays_where_only_it_is_on_disk(tier: Tier, stays: bool) -> None:
    """The longer one that begins like it says the same only where it is kept as well."""
    index = PrefixIndex()
    root = index.root(b"root")
    short, long = index.add(root, [1, 1], has_state=False), index.add(root, [1, 1, 2, 2], has_state=False)
    index.place(short, "disk", 10)
    index.place(long, "ram", 20)
    if tier == "disk":
        index.place(long, "disk", 20)
    assert (short in list(index)) == stays
    assert long in list(index)


def test_a_block_is_as_recent_as_what_followed_it() -> None:
    """Also where that went for another reason than its age."""
    index = PrefixIndex()
    first = index.add(index.root(b"one"), (1, 2, 3))
    index.place(first, "ram", 1, BlockRef(next(BLOCK_IDS), 1))
    other = index.add(index.root(b"two"), (4, 5, 6))
    index.place(other, "ram", 1, BlockRef(next(BLOCK_IDS), 1))
    following = index.add(first, (7, 8, 9))
    index.place(following, "ram", 1, BlockRef(next(BLOCK_IDS), 1))
    index.drop(following)
    assert index.shed("ram", 1) == 1
    assert index.get(first.id) is first
    assert index.get(other.id) is None
