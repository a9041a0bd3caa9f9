"""The prefix cache through a long life: prompts that share beginnings, aborts, little memory, a small and faulty disk.

The store notices whatever is put together wrongly; here is what is held, where, and for how long.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from mlx_backend.api.errors import OutOfMemory, SequenceFailed
from mlx_backend.api.interface import PrefixCacheConfig
from mlx_backend.core.sequence import SequenceGroup, Status, TokenSequence, next_id
from mlx_backend.core.step import Chunk
from mlx_backend.prefix_cache import block_files
from mlx_backend.prefix_cache.block_files import BlockFiles
from mlx_backend.prefix_cache.cache import PrefixCache
from mlx_backend.prefix_cache.index import Node
from tests.mlx_backend.prefix_cache.rooms import (
    FakeDisk,
    SnapshotStore,
    check_blocks,
    execute,
    planned,
    prompt,
    start_again,
)

SIZE, STEP = 4, 8
RAM = (0, 40, 150, 400, 2000)
DISK = (0, 500, 1500, 4000, 100_000)
"""Bytes; a file of a full block takes some 250."""
NUM_STEPS = 400


class BoundedFiles(BlockFiles):
    """Looks at what waits whenever that has grown: who leaves memory afterwards waits until somebody looks again."""

    def _enqueue(self, node: Node) -> None:
        super()._enqueue(node)
        assert len(self._unwritten) <= 2 * self._index.count("ram") + block_files._SLACK


@pytest.fixture(autouse=True)
def bounded_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_backend.prefix_cache.cache.BlockFiles", BoundedFiles)


class Life:
    """Steps drawn by a seed, each followed by what always holds."""

    def __init__(self, seed: int) -> None:
        self.source = source = random.Random(seed)
        self.cuts = source.random() < 0.5
        self.ram, self.max_bytes = source.choice(RAM), source.choice(DISK)
        self.disk = FakeDisk() if source.random() < 0.7 else None
        self.start()

    def step(self) -> None:
        weights = {
            self.arrive: 8,
            self.advance: 12,
            self.lose_what_was_planned: 2,
            self.refuse_what_was_planned: 0.5,
            self.decode: 8,
            self.abort: 3,
            self.idle: 2,
            self.run_out_of_memory: 0.3,
            self.fit: 1,
            self.work: 8,
            self.damage: 1,
            self.fill: 0.5,
            self.restart: 0.3,
            self.settle: 0.5,
            self.finish_all: 0.5,
        }
        (chosen,) = self.source.choices(list(weights), list(weights.values()))
        chosen()
        self.check()

    def tokens(self) -> tuple[int, ...]:
        source = self.source
        drawn = [0] * source.randint(1, 30)
        if source.random() < 0.3:
            drawn = [source.randint(0, 1) for _ in drawn]
        if source.random() < 0.5:
            drawn[source.randint(0, len(drawn)) :] = [source.randint(1, 3)] * source.randint(1, 12)
        return tuple(drawn or [0])

    def check(self) -> None:
        self.memory_holds_no_more_than_it_may()
        self.the_folder_holds_no_more_than_it_may()
        self.what_waits_is_bounded()
        check_blocks(self.cache, self.store)
        self.nothing_is_remembered_of_who_is_gone()

    def start(self) -> None:
        config = PrefixCacheConfig(chunk_tokens=SIZE, snapshot_tokens=STEP, max_bytes=self.max_bytes)
        self.store = SnapshotStore(cuts=self.cuts)
        self.cache = PrefixCache(config, self.store, b"model", self.ram, self.disk)  # type: ignore[arg-type]
        self.prefills: list[SequenceGroup] = []
        self.running: list[TokenSequence] = []
        self.in_flight: list[TokenSequence] = []
        self.bound = self.ram

    # ---- who comes and goes ----

    def arrive(self) -> None:
        if len(self.prefills) + len(self.running) > 8:
            return
        source, tokens = self.source, self.tokens()
        border = source.choice([0, 4, 6, 12])
        self.take_in(
            prompt(
                tokens,
                n=source.choice([1, 1, 2]),
                cache_salt=source.choice(["", "", "", "salt"]),
                system_border=border,
                cache_breakpoints=(border,) if 0 < border < len(tokens) else (),
                uses_prefix_cache=source.random() < 0.9,
            )
        )

    def take_in(self, group: SequenceGroup) -> None:
        self.prefills.append(group)
        self.complete(group)

    def advance(self) -> None:
        if self.prefills:
            self.turn(self.source.choice(self.prefills), self.source.randint(1, 40))

    def turn(self, group: SequenceGroup, most: int) -> None:
        self.cache.poll()
        chunk = self.plan(group, most)
        if chunk is not None:
            assert self.execute(group, chunk)

    def plan(self, group: SequenceGroup, most: int) -> Chunk | None:
        """None: it waits for the disk."""
        match = self.cache.match(group)
        if match.starts_again:
            start_again(self.store, group)
        start = group.num_computed_tokens
        if match.waits:
            assert self.disk is not None
            return None
        if match.restorable_until > start:
            assert match.restorable_until < group.num_tokens
            return planned(self.cache, group, min(start + most, match.restorable_until))
        return group.chunk(start, min(start + most, group.num_tokens - 1, match.stop_at or group.num_tokens))

    def execute(self, group: SequenceGroup, chunk: Chunk) -> bool:
        is_done = execute(self.cache, self.store, group, chunk)
        assert 0 <= group.num_cached_tokens <= group.num_computed_tokens
        self.complete(group)
        return is_done

    def lose_what_was_planned(self) -> None:
        """Between the plan and its chunks, somebody needs the memory, rows leave, a client goes, memory runs out."""
        plan = self.plan_several()
        for _ in range(self.source.randint(1, 3)):
            between = [self.fit, self.decode, self.abort, self.run_out_of_memory]
            self.source.choices(between, [8, 4, 2, 0.5])[0]()
            self.check()
        for group, chunk in plan:
            if group in self.prefills:
                assert self.execute(group, chunk) or chunk.restore is not None
                self.check()

    def plan_several(self) -> list[tuple[SequenceGroup, Chunk]]:
        count = self.source.randint(0, min(3, len(self.prefills)))
        chunks = [
            (each, self.plan(each, self.source.randint(1, 40))) for each in self.source.sample(self.prefills, count)
        ]
        return [(group, chunk) for group, chunk in chunks if chunk is not None]

    def refuse_what_was_planned(self) -> None:
        """What is there cannot be restored: the prompt is lost, and is computed."""
        error = self.source.choice([SequenceFailed("no such shape"), OutOfMemory("no memory")])
        for group, chunk in self.plan_several():
            if chunk.restore is not None and self.cache.has_all(group, chunk):  # else one before it took it along
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(self.store, "restore", raising(error))
                    assert not self.execute(group, chunk)
                assert group.num_computed_tokens == 0
                assert self.cache.match(group).restorable_until == 0

    def complete(self, group: SequenceGroup) -> None:
        if group.num_remaining_tokens == 0:
            self.prefills.remove(group)
            for sequence in group.sequences:
                if sequence.status is Status.PENDING:
                    sequence.status = Status.RUNNING
                    self.running.append(sequence)
            self.store.drop(group.id)

    def decode(self) -> None:
        rows = tuple(s for s in self.running if s.num_started_tokens < s.request.max_tokens)
        self.change_rows(rows)
        for sequence in rows:
            sequence.num_started_tokens += 1
        self.collect()
        self.in_flight = list(rows)

    def change_rows(self, rows: tuple[TokenSequence, ...]) -> None:
        self.cache.change_rows(rows)
        self.store.rows = {sequence.id: sequence for sequence in rows}

    def collect(self) -> None:
        for sequence in self.in_flight:
            if sequence.status is Status.ENDED:
                continue
            sequence.output_ids.append((len(sequence.output_ids) + sequence.ordinal) % 3)
            if len(sequence.output_ids) == sequence.request.max_tokens:
                self.end(sequence)
        self.in_flight = []

    def end(self, sequence: TokenSequence) -> None:
        self.cache.keep_given_up(sequence)
        sequence.status = Status.ENDED
        if sequence in self.running:
            self.running.remove(sequence)
        if sequence.group in self.prefills and not sequence.group.is_wanted:
            self.store.drop(sequence.group.id)
            self.prefills.remove(sequence.group)

    def abort(self) -> None:
        waiting = [s for group in self.prefills for s in group.sequences if s.status is Status.PENDING]
        if self.running or waiting:
            self.end(self.source.choice(self.running + waiting))

    def idle(self) -> None:
        if not self.running:
            self.collect()
            self.change_rows(())

    def run_out_of_memory(self) -> None:
        self.in_flight, self.store.rows = [], {}
        self.cache.clear()
        assert self.cache.stats().ram_bytes == 0
        running, self.running = self.running, []
        for sequence in running:
            sequence.status = Status.PENDING
            sequence.num_started_tokens = len(sequence.output_ids)
            sequence.group.sequences.remove(sequence)
            sequence.group = SequenceGroup(
                sequence.request, next_id(), tuple(sequence.output_ids), sequences=[sequence]
            )
            self.take_in(sequence.group)

    # ---- memory and disk ----

    def fit(self) -> None:
        free = self.source.choice([None, None, self.source.randint(-50, 500)])
        self.cache.fit(free)
        self.bound = self.ram if free is None else max(0, min(self.ram, free))

    def work(self) -> None:
        if self.disk is not None:
            self.disk.work(self.source.randint(1, 6))

    def damage(self) -> None:
        if self.disk is None or not self.disk.files:
            return
        block_id = self.source.choice(sorted(self.disk.files))
        if self.source.random() < 0.5:
            del self.disk.files[block_id]
        else:
            header, content = self.disk.files[block_id]
            self.disk.files[block_id] = (header, content[:-1])

    def fill(self) -> None:
        if self.disk is not None:
            self.disk.is_full = self.source.random() < 0.3

    def restart(self) -> None:
        if self.disk is None:
            return
        if self.source.random() < 0.5:
            self.cache.close()
        self.disk = FakeDisk(dict(self.disk.files))
        self.start()
        self.disk.work()

    def settle(self) -> None:
        """The disk has done all that it was asked: the tree and the folder say the same."""
        if self.disk is None:
            return
        while self.disk.num_jobs or self.cache.has_news:
            self.disk.work()
            self.cache.poll()
        index, files = self.cache._index, self.disk.files
        assert index.dropped == []
        for node in index:
            if "disk" in node.sizes and node.id in files:  # else it was damaged, and nobody has noticed yet
                assert files[node.id][0].token_ids == node.token_ids
                assert files[node.id][0].has_state >= node.has_state
        assert {node.id for node in index if "disk" in node.sizes} >= files.keys()

    def finish_all(self) -> None:
        """Whoever is there gets to the end of its prompt, whatever the disk does."""
        for _ in range(600):
            for group in list(self.prefills):
                self.turn(group, 7)
            if self.disk is not None:
                self.disk.work(3)
            if not self.prefills:
                return
        raise AssertionError("a prompt does not come to its end")

    def nothing_is_remembered_of_who_is_gone(self) -> None:
        there = {group.id for group in self.prefills}
        assert self.cache._cursors.keys() <= there
        assert self.store.prompts.keys() <= there

    def memory_holds_no_more_than_it_may(self) -> None:
        assert self.cache.stats().ram_bytes <= self.bound

    def the_folder_holds_no_more_than_it_may(self) -> None:
        assert self.disk is None or self.disk.num_bytes <= self.max_bytes
        assert self.cache.stats().disk_bytes <= self.max_bytes

    def what_waits_is_bounded(self) -> None:
        files = self.cache._files
        if files is not None:
            assert isinstance(files, BoundedFiles)
            assert files._num_writing_bytes == sum(files._writing.values())


def raising(error: SequenceFailed) -> Callable[[Chunk], None]:
    def refuse(chunk: Chunk) -> None:
        raise error

    return refuse


@pytest.mark.parametrize("seed", range(150))
def test_a_long_life(seed: int) -> None:
    life = Life(seed)
    for _ in range(NUM_STEPS):
        life.step()
    life.finish_all()
    life.settle()
    life.check()
    assert life.prefills == []
    assert life.cache._cursors == {}
