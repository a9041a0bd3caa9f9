"""Who reads from the disk, how much at once, and for how long it is waited for."""

from __future__ import annotations

import pytest

from mlx_backend.core.sequence import SequenceGroup, Status
from mlx_backend.core.step import BlockRef
from mlx_backend.prefix_cache.index import Node, PrefixIndex
from mlx_backend.prefix_cache.loading import Loading
from tests.mlx_backend.prefix_cache.rooms import FakeDisk, Kept, SnapshotStore, prompt


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("mlx_backend.prefix_cache.loading.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def disk() -> FakeDisk:
    return FakeDisk()


@pytest.fixture
def store() -> SnapshotStore:
    return SnapshotStore()


@pytest.fixture
def loading(disk: FakeDisk, clock: Clock, store: SnapshotStore) -> Loading:
    return Loading(disk, store.free)  # type: ignore[arg-type]


def path(count: int = 4, size: int = 10) -> list[Node]:
    index, nodes = PrefixIndex(), list[Node]()
    node = index.root(b"root")
    for number in range(count):
        node = index.add(node, [number] * 4)
        index.place(node, "disk", size)
        nodes.append(node)
    return nodes


def payload(store: SnapshotStore, node: Node) -> BlockRef:
    return store.hold(Kept(node.token_ids, None, 10))


def arrive(loading: Loading, store: SnapshotStore, *nodes: Node) -> None:
    for node in nodes:
        loading.arrived(node, node.id, payload(store, node))


def held(loading: Loading, store: SnapshotStore) -> set[Node]:
    """What has come; the store holds that and no more."""
    assert sorted(ref.id for ref in loading.payloads.values()) == sorted(store.blocks)
    return set(loading.payloads)


def take(loading: Loading, store: SnapshotStore) -> None:
    """The prompt has used up what has come, and nothing of it stays in memory."""
    for ref in loading.payloads.values():
        store.free(ref.id)
    loading.payloads.clear()


def long_prompt() -> SequenceGroup:
    return prompt(range(100))


def test_without_a_disk_nothing_is_waited_for() -> None:
    assert not Loading(None, SnapshotStore().free).want(long_prompt(), path())


def test_blocks_are_asked_for_once_and_are_there_when_they_have_come(
    loading: Loading, store: SnapshotStore, disk: FakeDisk
) -> None:
    mine, nodes = long_prompt(), path()
    assert loading.want(mine, nodes)
    assert loading.want(mine, nodes)
    assert disk.num_jobs == 4
    arrive(loading, store, *nodes)
    assert held(loading, store) == set(nodes)


def test_one_prompt_at_a_time(loading: Loading, store: SnapshotStore, disk: FakeDisk) -> None:
    mine, other, nodes, others = long_prompt(), long_prompt(), path(), path(2)
    assert loading.want(mine, nodes)
    assert loading.want(other, others)  # waits for its turn
    assert disk.num_jobs == 4
    arrive(loading, store, *nodes)
    loading.drop_unwanted()
    assert loading.want(other, others)
    assert disk.num_jobs == 4  # the first one has what it needs, and has not taken it yet
    take(loading, store)
    loading.drop_unwanted()
    assert loading.want(other, others)
    assert disk.num_jobs == 6


@pytest.mark.parametrize("how", ["aborted", "computed"])
def test_whoever_needs_no_more_is_not_waited_for(
    loading: Loading, store: SnapshotStore, disk: FakeDisk, how: str
) -> None:
    mine, other, nodes = long_prompt(), long_prompt(), path()
    loading.want(mine, nodes)
    arrive(loading, store, *nodes)
    if how == "aborted":
        mine.sequences[0].status = Status.ENDED
    else:
        mine.num_computed_tokens = 99
    loading.drop_unwanted()
    assert held(loading, store) == set()
    assert loading.want(other, nodes)
    assert disk.num_jobs == 8


def test_whoever_computes_after_all_is_not_in_the_way(loading: Loading, store: SnapshotStore, disk: FakeDisk) -> None:
    mine, other, nodes = long_prompt(), long_prompt(), path()
    loading.want(mine, nodes)
    loading.leave(mine)  # it is still being read
    arrive(loading, store, *nodes)
    loading.leave(other)  # has nothing to leave
    assert held(loading, store) == set(nodes)
    loading.leave(mine)
    assert held(loading, store) == set()
    assert loading.want(other, path(1))
    assert disk.num_jobs == 5


def test_what_could_not_be_read_holds_up_nobody(loading: Loading, store: SnapshotStore, disk: FakeDisk) -> None:
    mine, other, nodes = long_prompt(), long_prompt(), path(2)
    loading.want(mine, nodes)
    for node in nodes:
        loading.arrived(node, node.id, None)
    loading.drop_unwanted()
    assert held(loading, store) == set()
    assert loading.want(other, path(1))
    assert disk.num_jobs == 3


def test_what_has_left_the_tree_meanwhile_is_not_kept(loading: Loading, store: SnapshotStore) -> None:
    (node,) = path(1)
    loading.want(long_prompt(), [node])
    loading.arrived(None, node.id, payload(store, node))
    assert held(loading, store) == set()


def test_a_part_that_fits_is_read_ahead(loading: Loading, store: SnapshotStore, disk: FakeDisk) -> None:
    nodes = path(5, size=20 << 20)
    mine = long_prompt()
    assert loading.want(mine, nodes)
    assert disk.num_jobs == 3
    arrive(loading, store, *nodes[:3])
    take(loading, store)
    assert loading.want(mine, nodes[3:])
    assert disk.num_jobs == 5


def test_a_block_that_is_larger_than_what_is_read_ahead_is_read_alone(loading: Loading, disk: FakeDisk) -> None:
    assert loading.want(long_prompt(), path(2, size=100 << 20))
    assert disk.num_jobs == 1


def test_what_is_in_memory_is_not_read(loading: Loading, store: SnapshotStore, disk: FakeDisk) -> None:
    nodes = path(3)
    nodes[1].payload = payload(store, nodes[1])
    loading.want(long_prompt(), nodes)
    assert disk.num_jobs == 2


def test_a_block_in_no_tier_is_computed(loading: Loading) -> None:
    (node,) = path(1)
    del node.sizes["disk"]
    assert not loading.want(long_prompt(), [node])


def test_a_disk_that_says_nothing_is_not_waited_for_longer_than_patience(
    loading: Loading, store: SnapshotStore, disk: FakeDisk, clock: Clock
) -> None:
    mine, other, nodes = long_prompt(), long_prompt(), path()
    assert loading.want(mine, nodes)
    clock.now += 9
    assert loading.want(mine, nodes)
    arrive(loading, store, nodes[0])  # it lives
    clock.now += 9
    assert loading.want(mine, nodes[1:])
    assert held(loading, store) == {nodes[0]}
    clock.now += 2
    assert not loading.want(mine, nodes[1:])
    assert held(loading, store) == set()
    assert not loading.want(other, nodes[2:])
    assert loading.want(other, path(1))  # of others it may know more
    arrive(loading, store, nodes[1])  # late, and it is as good as ever
    assert nodes[1] not in held(loading, store)
    clock.now += 11
    assert loading.want(mine, nodes[1:2])
    assert disk.num_jobs == 6
