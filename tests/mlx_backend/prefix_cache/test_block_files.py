"""The tree and the folder are kept alike, in whatever order things happen to a block while it is written or read."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from mlx_backend.prefix_cache import block_files
from mlx_backend.prefix_cache.block_files import BlockFiles
from mlx_backend.prefix_cache.files import file_bytes
from mlx_backend.prefix_cache.identity import chain_id
from mlx_backend.prefix_cache.index import Node, PrefixIndex
from tests.mlx_backend.prefix_cache.rooms import FakeDisk, Kept, SnapshotStore

MOST = 100_000


class Rooms:
    def __init__(self, disk: FakeDisk | None = None, max_bytes: int = MOST) -> None:
        self.disk = FakeDisk() if disk is None else disk
        self.store = SnapshotStore()
        self.index = PrefixIndex(cuts=False, free=self.store.free)
        self.files = BlockFiles(self.disk, self.index, self.store, max_bytes)  # type: ignore[arg-type]
        self.read: list[tuple[bytes, Any]] = []

    def put(self, *tokens: int, after: Node | None = None, has_state: bool = False) -> Node:
        parent = self.index.root(b"root") if after is None else after
        node = self.index.add(parent, tokens, has_state=has_state)
        self.hold(node, has_state=has_state)
        self.files.add(node)
        return node

    def hold(self, node: Node, *, has_state: bool) -> None:
        """Have it in memory, anew where it is there."""
        kept = Kept(node.token_ids, node.token_ids if has_state else None, 10)
        self.index.place(node, "ram", 10, self.store.hold(kept))

    def poll(self) -> None:
        self.files.poll(lambda node, block_id, payload: self.read.append((block_id, payload)))

    def settle(self) -> None:
        self.poll()
        while self.disk.num_jobs or self.files.has_news:
            self.disk.work()
            self.poll()

    @property
    def on_disk(self) -> set[bytes]:
        known = {node.id for node in self.index if "disk" in node.sizes}
        assert known == self.disk.files.keys()
        return known


def test_what_is_added_is_written_in_the_background() -> None:
    rooms = Rooms()
    node = rooms.put(1, 2)
    assert rooms.files.has_news
    rooms.poll()
    assert not rooms.files.has_news
    assert "disk" not in node.sizes
    rooms.disk.work()
    assert rooms.files.has_news
    rooms.poll()
    assert rooms.on_disk == {node.id}
    assert node.sizes["disk"] == rooms.index.num_bytes("disk") == rooms.disk.num_bytes


def test_what_leaves_memory_before_its_turn_is_not_written() -> None:
    rooms = Rooms()
    rooms.put(1, 2)
    rooms.index.shed("ram", 0)
    rooms.settle()
    assert rooms.on_disk == set()


def test_what_leaves_while_it_is_written_leaves_no_file() -> None:
    rooms = Rooms()
    rooms.put(1, 2)
    rooms.poll()
    rooms.index.shed("ram", 0)
    rooms.settle()
    assert rooms.on_disk == set()


@pytest.mark.parametrize("num_done", [0, 1])
def test_what_comes_again_while_its_first_file_is_written_has_one_in_the_end(num_done: int) -> None:
    rooms = Rooms()
    rooms.put(1, 2)
    rooms.poll()
    rooms.index.shed("ram", 0)
    rooms.disk.work(num_done)
    again = rooms.put(1, 2)
    rooms.settle()
    assert rooms.on_disk == {again.id}


def test_what_comes_again_while_its_file_waits_to_be_removed_has_one_in_the_end() -> None:
    rooms = Rooms()
    node = rooms.put(1, 2)
    rooms.settle()
    rooms.index.drop(node)
    again = rooms.put(1, 2)  # nobody has told the disk yet
    rooms.settle()
    assert rooms.on_disk == {again.id}


def test_what_leaves_the_tree_leaves_the_folder() -> None:
    rooms = Rooms()
    rooms.index.drop(rooms.put(1, 2))
    node = rooms.put(1, 2)
    rooms.settle()
    rooms.index.drop(node)
    rooms.settle()
    assert rooms.on_disk == set()


def test_a_snapshot_that_comes_while_the_file_without_it_is_written_is_in_the_file() -> None:
    rooms = Rooms()
    node = rooms.put(1, 2)
    rooms.poll()
    node.has_state = True
    rooms.hold(node, has_state=True)
    rooms.files.rewrite(node)
    rooms.files.add(node)
    rooms.settle()
    assert rooms.on_disk == {node.id}
    assert rooms.disk.files[node.id][0].has_state
    assert rooms.disk.files[node.id][0].arrays["has"]


def test_a_snapshot_that_comes_later_makes_the_file_anew() -> None:
    rooms = Rooms()
    node = rooms.put(1, 2)
    rooms.settle()
    node.has_state = True
    rooms.hold(node, has_state=True)
    rooms.files.rewrite(node)
    rooms.files.add(node)
    rooms.settle()
    assert rooms.on_disk == {node.id}
    assert rooms.disk.files[node.id][0].has_state


def test_a_block_that_cannot_be_read_goes_with_what_follows_it() -> None:
    rooms = Rooms()
    first = rooms.put(1, 2)
    second, other = rooms.put(3, 4, after=first), rooms.put(5, 6)
    rooms.settle()
    rooms.index.shed("ram", 0)
    del rooms.disk.files[first.id]
    rooms.disk.read([first.id])
    rooms.settle()
    assert rooms.read == [(first.id, None)]
    assert rooms.index.get(second.id) is None
    assert rooms.on_disk == {other.id}


def test_a_block_that_the_store_cannot_use_is_a_miss_and_its_file_goes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = Rooms()
    node = rooms.put(1, 2)
    rooms.settle()

    def refuse(*_: object) -> Kept:
        raise ValueError("it is of other layers")

    monkeypatch.setattr(rooms.store, "load", refuse)
    rooms.disk.read([node.id])
    rooms.settle()
    assert rooms.read == [(node.id, None)]
    assert rooms.on_disk == set()
    assert "other layers" in caplog.text


def test_what_cannot_be_taken_out_of_memory_is_dropped_and_nobody_dies(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = Rooms()

    def refuse(*_: object) -> Any:
        raise RuntimeError("the device has lost it")

    node = rooms.put(1, 2)
    monkeypatch.setattr(rooms.store, "dump", refuse)
    rooms.settle()
    assert rooms.index.get(node.id) is None
    assert "the device has lost it" in caplog.text


def test_after_a_restart_what_has_no_beginning_is_removed() -> None:
    before = Rooms()
    first = before.put(1, 2)
    second = before.put(3, 4, after=first)
    third, other = before.put(5, 6, after=second), before.put(7, 8)
    before.settle()
    del before.disk.files[second.id]
    after = Rooms(before.disk)
    assert {node.id for node in after.index} == {first.id, other.id}
    after.settle()
    assert after.on_disk == {first.id, other.id}
    assert third.id not in after.disk.files


def test_a_block_at_another_place_than_it_says_is_removed() -> None:
    before = Rooms()
    first = before.put(1, 2)
    second = before.put(3, 4, after=first)
    before.settle()
    header, content = before.disk.files[second.id]
    before.disk.files[second.id] = (header.__class__(**{**as_dict(header), "start": 7}), content)
    header, content = before.disk.files[first.id]
    before.disk.files[first.id] = (header.__class__(**{**as_dict(header), "token_ids": ()}), content)
    after = Rooms(before.disk)
    after.settle()
    assert after.on_disk == set()
    assert after.index.get(b"root") is None


def as_dict(header: Any) -> dict[str, Any]:
    return {name: getattr(header, name) for name in header.__slots__}


def test_after_a_restart_the_order_of_use_is_that_of_the_files() -> None:
    before = Rooms()
    nodes = [before.put(number, number) for number in range(4)]
    before.settle()
    before.disk.used([nodes[0].id])
    before.disk.work()
    size = before.disk.num_bytes
    after = Rooms(before.disk, max_bytes=size // 2)
    after.settle()
    assert after.on_disk == {nodes[3].id, nodes[0].id}
    assert after.files.num_evicted == 2


def test_room_is_made_before_a_block_is_written() -> None:
    rooms = Rooms()
    nodes = [rooms.put(number, number) for number in range(4)]
    rooms.settle()
    tight = Rooms(rooms.disk, max_bytes=rooms.disk.num_bytes)
    new = tight.put(9, 9)
    tight.poll()
    while tight.disk.num_jobs:
        tight.disk.work(1)
        assert tight.disk.num_bytes <= tight.files._max_bytes
    tight.settle()
    assert tight.on_disk == {node.id for node in nodes[1:]} | {new.id}


def test_a_prompt_longer_than_the_folder_keeps_its_beginning() -> None:
    rooms = Rooms(max_bytes=800)
    node, chain = None, []
    for number in range(9):
        node = rooms.put(number, number, after=node)
        chain.append(node.id)
        rooms.settle()
    assert len(rooms.on_disk) >= 2
    assert rooms.on_disk == set(chain[: len(rooms.on_disk)])


@pytest.mark.parametrize("max_bytes", [0, 1, 100])
def test_a_folder_that_holds_no_block_holds_none_and_nobody_waits(max_bytes: int) -> None:
    rooms = Rooms(max_bytes=max_bytes)
    rooms.put(1, 2)
    rooms.settle()
    assert rooms.on_disk == set()


def test_what_could_not_be_written_is_written_when_it_is_used_again() -> None:
    rooms = Rooms()
    rooms.disk.is_full = True
    first = rooms.put(1, 2)
    second = rooms.put(3, 4, after=first)
    rooms.settle()
    assert rooms.on_disk == set()
    rooms.disk.is_full = False
    third = rooms.put(5, 6, after=second)
    rooms.settle()
    assert rooms.on_disk == set()  # it would be an orphan after a restart
    rooms.files.used([first, second, third])
    rooms.settle()
    assert rooms.on_disk == {first.id, second.id, third.id}


def test_what_waits_for_a_slow_disk_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = Rooms()
    monkeypatch.setattr(block_files, "_MOST_BYTES", 1000)
    for number in range(1000):
        rooms.put(number, number)
        rooms.index.shed("ram", 200)
        rooms.poll()
    assert len(rooms.files._unwritten) <= 2 * 20 + block_files._SLACK
    assert sum(file_bytes(job[1][0]) for job in rooms.disk._jobs) <= 1000 + 300
    rooms.settle()


def test_closing_writes_what_waits(caplog: pytest.LogCaptureFixture) -> None:
    rooms = Rooms()
    ids = {rooms.put(number, number).id for number in range(50)}
    rooms.files.close()
    assert rooms.disk.files.keys() == ids
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_ids_are_of_content() -> None:
    rooms = Rooms()
    assert rooms.put(1, 2).id == chain_id(b"root", (1, 2))
