"""What is kept of a prompt and of an answer, what is taken of it, and what becomes of what cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_backend.api.errors import OutOfMemory, SequenceFailed
from mlx_backend.api.interface import PrefixCacheConfig
from mlx_backend.core.sequence import SequenceGroup, Status, TokenSequence, next_id
from mlx_backend.core.step import Chunk
from mlx_backend.prefix_cache.cache import PrefixCache
from mlx_backend.prefix_cache.prefix_match import PrefixMatch
from tests.mlx_backend.prefix_cache.rooms import (
    FakeDisk,
    Held,
    SnapshotStore,
    check_blocks,
    execute,
    planned,
    prompt,
    start_again,
)

SIZE = 4


class Rooms:
    def __init__(self, ram: int = 10_000, disk: FakeDisk | None = None, *, cuts: bool = True, step: int = 8) -> None:
        config = PrefixCacheConfig(chunk_tokens=SIZE, snapshot_tokens=step, max_bytes=100_000)
        self.store, self.disk = SnapshotStore(cuts=cuts), disk
        self.cache = PrefixCache(config, self.store, b"model", ram, disk)  # type: ignore[arg-type]

    def advance(self, group: SequenceGroup, most: int = 1000) -> PrefixMatch:
        """One turn of this prompt."""
        self.cache.poll()
        match = self.cache.match(group)
        if match.starts_again:
            start_again(self.store, group)
        start = group.num_computed_tokens
        if match.waits:
            assert self.disk is not None
            self.disk.work()
        elif match.restorable_until > start:
            self.execute(group, planned(self.cache, group, min(start + most, match.restorable_until)))
        else:
            stop = min(start + min(most, group.num_remaining_tokens), match.stop_at or group.num_tokens)
            assert self.execute(group, group.chunk(start, stop))
        check_blocks(self.cache, self.store)
        return match

    def execute(self, group: SequenceGroup, chunk: Chunk) -> bool:
        return execute(self.cache, self.store, group, chunk)

    def held(self, group: SequenceGroup) -> Held:
        """What the runner has of a prompt."""
        return self.store.prompts[group.id]

    def change_rows(self, *sequences: TokenSequence) -> None:
        """Let the others leave, once the cache knows, and these join."""
        self.cache.change_rows(sequences)
        self.store.rows = {sequence.id: sequence for sequence in sequences}

    def run(self, tokens: Any, most: int = 1000, **changes: Any) -> SequenceGroup:
        """A prompt from its first token to its last."""
        group = prompt(tokens, **changes)
        for _ in range(300):
            if group.num_remaining_tokens <= 0:
                return group
            self.advance(group, most)
        raise AssertionError("it does not come to its end")

    def answer(self, group: SequenceGroup, output: list[int]) -> None:
        """Its sequences decode so much and leave."""
        for sequence in group.sequences:
            sequence.status = Status.RUNNING
        self.change_rows(*group.sequences)
        for sequence in group.sequences:
            sequence.output_ids = output
            sequence.num_started_tokens = len(output)
            sequence.status = Status.ENDED
        self.change_rows()

    def settle(self) -> None:
        assert self.disk is not None
        for _ in range(100):
            self.disk.work()
            self.cache.poll()
        assert not self.disk.num_jobs
        assert not self.cache.has_news

    @property
    def kept(self) -> list[tuple[int, int]]:
        """(start, end) of what memory holds."""
        check_blocks(self.cache, self.store)
        return sorted((node.start, node.end) for node in self.cache._index if node.payload is not None)


@pytest.mark.parametrize("length", [1, 2, 3, SIZE, SIZE + 1, 2 * SIZE, 2 * SIZE + 1, 3 * SIZE - 1])
@pytest.mark.parametrize("cuts", [True, False])
def test_all_but_the_last_token_is_found_again_at_any_length(length: int, cuts: bool) -> None:
    rooms = Rooms(cuts=cuts)
    assert rooms.run(range(length)).num_cached_tokens == 0
    assert rooms.run(range(length)).num_cached_tokens == length - 1


def test_what_was_kept_twice_is_held_once() -> None:
    rooms = Rooms()
    for last in (100, 200, 300):
        rooms.run([*range(8), last, last])
    assert rooms.kept == [(0, 4), (4, 8), (8, 9), (8, 9), (8, 9)]


def test_an_answer_is_kept_to_its_last_computed_token() -> None:
    rooms = Rooms()
    rooms.answer(rooms.run(range(6)), [50, 51, 52])
    assert rooms.run([*range(6), 50, 51, 52, 53]).num_cached_tokens == 8
    assert rooms.kept[:2] == [(0, 4), (4, 8)]


def test_a_longer_block_takes_the_place_of_the_shorter() -> None:
    rooms = Rooms()
    rooms.answer(rooms.run(range(7)), [7, 8, 9])
    assert rooms.kept == [(0, 4), (4, 8), (8, 9)]


@pytest.mark.parametrize("n", [2, 3])
def test_each_of_several_answers_is_kept(n: int) -> None:
    rooms = Rooms()
    group = rooms.run(range(6), n=n)
    for sequence in group.sequences:
        sequence.status = Status.RUNNING
    rooms.change_rows(*group.sequences)
    for sequence in group.sequences:
        sequence.output_ids, sequence.num_started_tokens = [100 + sequence.ordinal] * 5, 5
        sequence.status = Status.ENDED
    rooms.change_rows()
    for ordinal in range(n):
        assert rooms.run([*range(6), *[100 + ordinal] * 5]).num_cached_tokens == 10


def test_rows_that_are_lost_leave_nothing() -> None:
    rooms = Rooms()
    group = rooms.run(range(6))
    rooms.change_rows(*group.sequences)
    before = rooms.kept
    group.sequences[0].output_ids, group.sequences[0].num_started_tokens = [9] * 9, 9
    rooms.cache.lose_rows()
    rooms.change_rows()
    assert rooms.kept == before


@pytest.mark.parametrize("cuts", [True, False])
def test_who_is_computed_again_after_memory_ran_out_finds_what_it_said_if_somebody_kept_it(cuts: bool) -> None:
    rooms = Rooms(cuts=cuts)
    first = rooms.run(range(6))
    rooms.answer(first, [50, 51, 52, 53])
    again = SequenceGroup(first.request, next_id(), (50, 51, 52, 53), sequences=first.sequences)
    first.sequences[0].group, first.sequences[0].status = again, Status.PENDING
    while again.num_remaining_tokens:
        rooms.advance(again)
    assert again.num_computed_tokens == 9
    assert again.num_cached_tokens == 0  # of the prompt it was computed once, and paid for
    assert rooms.cache.stats().num_computed_tokens == 5


@pytest.mark.parametrize("cuts", [True, False])
def test_an_aborted_prompt_is_gone_on_with_where_it_was(cuts: bool) -> None:
    rooms = Rooms(cuts=cuts, step=1000)
    group = prompt(range(100))
    rooms.advance(group, 10)
    rooms.advance(group, 13)
    rooms.cache.keep_given_up(group.sequences[0])
    assert rooms.run(range(100)).num_cached_tokens == 23


def test_of_several_that_share_a_prompt_the_last_to_leave_keeps_it() -> None:
    rooms = Rooms()
    group = prompt(range(100), n=2)
    rooms.advance(group, 10)
    first, second = group.sequences
    before = rooms.kept
    rooms.cache.keep_given_up(first)
    assert rooms.kept == before
    first.status = Status.ENDED
    rooms.cache.keep_given_up(second)
    assert rooms.kept == [*before, (8, 10)]


def test_what_failed_has_nothing_to_keep() -> None:
    rooms = Rooms()
    group = prompt(range(100))
    rooms.advance(group, 10)
    before = rooms.kept
    start_again(rooms.store, group)
    rooms.cache.keep_given_up(group.sequences[0])
    assert rooms.kept == before


@pytest.mark.parametrize(
    "changes", [{"uses_prefix_cache": False}, {"embeds": True, "max_tokens": 0}, {"num_prompt_logprobs": 1}]
)
def test_who_does_not_want_it_or_needs_what_is_not_kept_takes_nothing(changes: dict[str, Any]) -> None:
    rooms = Rooms()
    rooms.run(range(20))
    assert rooms.cache.match(prompt(range(20), **changes)) == PrefixMatch()


@pytest.mark.parametrize("changes", [{"uses_prefix_cache": False}, {"embeds": True, "max_tokens": 0}])
def test_who_does_not_want_it_leaves_nothing(changes: dict[str, Any]) -> None:
    rooms = Rooms()
    group = rooms.run(range(20), **changes)
    rooms.answer(group, [1, 2])
    assert rooms.kept == []


def test_a_prompt_larger_than_memory_keeps_its_beginning_and_takes_nothing_from_itself() -> None:
    rooms = Rooms(ram=8 * SIZE * 4)
    held: list[tuple[int, int]] = []
    group = prompt(range(1000))
    while group.num_remaining_tokens:
        rooms.advance(group, 10)
        assert set(rooms.kept) >= set(held)
        held = rooms.kept
    assert held == [(start, start + SIZE) for start in range(0, 8 * SIZE, SIZE)]
    assert rooms.run(range(1000)).num_cached_tokens == 8 * SIZE
    assert rooms.kept == held


def test_newer_prompts_take_the_place_of_older_ones_and_system_prompts_stay() -> None:
    rooms = Rooms(ram=9 * SIZE * 4)
    rooms.run(range(17), system_border=8)
    rooms.run(range(100, 117))
    rooms.run(range(200, 217))
    assert rooms.run(range(17)).num_cached_tokens == 8


def test_a_beginning_becomes_a_system_prompt_when_somebody_says_so() -> None:
    rooms = Rooms(ram=9 * SIZE * 4)
    rooms.run(range(17))
    rooms.run([*range(8), 50, 51], system_border=8)
    rooms.run(range(100, 117))
    rooms.run(range(200, 217))
    assert rooms.run(range(17)).num_cached_tokens == 8


def test_live_requests_come_first_and_what_they_leave_is_used_again() -> None:
    rooms = Rooms(ram=1000)
    rooms.run(range(41))
    assert rooms.cache.stats().ram_bytes == 160
    rooms.cache.fit(50)
    assert rooms.cache.stats().ram_bytes == 48
    rooms.run(range(41))
    assert rooms.cache.stats().ram_bytes <= 50
    rooms.cache.fit(-10)
    assert rooms.cache.stats().ram_bytes == 0
    rooms.run(range(41))
    assert rooms.kept == []
    rooms.cache.fit(None)
    rooms.run(range(41))
    assert rooms.cache.stats().ram_bytes == 160


def test_with_no_memory_nothing_is_kept_not_even_blocks_without_bytes() -> None:
    rooms = Rooms(ram=0, cuts=False)
    rooms.store.bytes_per_token = 0
    rooms.run(range(40))
    assert rooms.kept == []


@pytest.mark.parametrize("cuts", [True, False])
def test_what_goes_between_the_look_and_the_restoring_is_computed(cuts: bool) -> None:
    rooms = Rooms(cuts=cuts)
    rooms.run(range(33))
    group = prompt(range(33))
    rooms.advance(group, 5)
    assert group.num_cached_tokens == 5
    match = rooms.cache.match(group)
    assert match.restorable_until == 32
    chunk = planned(rooms.cache, group, 32)
    rooms.cache.fit(0)
    assert not rooms.execute(group, chunk)
    assert group.num_computed_tokens == group.num_cached_tokens == (5 if cuts else 0)
    while group.num_remaining_tokens:
        rooms.advance(group)  # the runner notices where it goes on from
    assert rooms.held(group) == Held(tuple(range(32)), tuple(range(32)))


@pytest.mark.parametrize("cuts", [True, False])
def test_what_goes_from_memory_alone_between_the_look_and_the_restoring_is_read(cuts: bool) -> None:
    rooms = Rooms(disk=FakeDisk(), cuts=cuts)
    rooms.run(range(33))
    rooms.settle()
    group = prompt(range(33))
    assert rooms.cache.match(group).restorable_until == 32
    chunk = planned(rooms.cache, group, 32)
    rooms.cache.fit(60)  # of eight blocks the last ones go
    rooms.cache.fit(None)
    assert not rooms.execute(group, chunk)
    while group.num_remaining_tokens:
        rooms.advance(group)
    assert group.num_cached_tokens == 32
    assert rooms.cache.stats().num_disk_tokens > 0


def test_a_block_gets_its_snapshot_from_a_prompt_that_ends_there() -> None:
    rooms = Rooms(disk=FakeDisk(), cuts=False, step=1000)
    rooms.run(range(33))
    rooms.settle()
    assert rooms.run(range(9)).num_cached_tokens == 0
    assert rooms.run(range(9)).num_cached_tokens == 8
    rooms.settle()
    assert rooms.disk is not None
    again = Rooms(disk=FakeDisk(dict(rooms.disk.files)), cuts=False)
    assert again.run(range(9)).num_cached_tokens == 8  # it is in the file, too


def test_half_of_a_snapshots_prompt_is_not_computed_upon() -> None:
    """The other half went before anybody looked again."""
    rooms = Rooms(cuts=False, step=32)
    rooms.run(range(33))
    group = prompt(range(33))
    rooms.advance(group, 5)
    rooms.cache.fit(0)
    while group.num_remaining_tokens:
        rooms.advance(group)
    assert group.num_cached_tokens == 0
    assert rooms.held(group) == Held(tuple(range(32)), tuple(range(32)))


def test_half_of_a_snapshots_prompt_is_not_kept() -> None:
    rooms = Rooms(cuts=False, step=32)
    rooms.run(range(33))
    group = prompt(range(33))
    rooms.advance(group, 8)
    before = rooms.kept
    rooms.cache.keep_given_up(group.sequences[0])
    assert rooms.kept == before


@pytest.mark.parametrize("error", [SequenceFailed("no such shape"), OutOfMemory("no memory")], ids=["failed", "oom"])
@pytest.mark.parametrize("cuts", [True, False])
def test_what_cannot_be_restored_is_computed_and_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: SequenceFailed, cuts: bool
) -> None:
    rooms = Rooms(cuts=cuts)
    rooms.run(range(33))

    def refuse(chunk: Chunk) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(rooms.store, "restore", refuse)
        group = rooms.run(range(33))
    assert group.num_cached_tokens == 0
    assert rooms.held(group) == Held(tuple(range(32)), tuple(range(32)))
    assert str(error) in caplog.text
    assert rooms.run(range(33)).num_cached_tokens == 32  # kept anew, or for want of memory still there


@pytest.mark.parametrize("error", [SequenceFailed("no such shape"), OutOfMemory("no memory")], ids=["failed", "oom"])
@pytest.mark.parametrize("cuts", [True, False])
def test_what_cannot_be_restored_goes_but_for_want_of_memory(
    monkeypatch: pytest.MonkeyPatch, cuts: bool, error: SequenceFailed
) -> None:
    rooms = Rooms(cuts=cuts)
    rooms.run(range(33))
    before = list(rooms.cache._index)

    def refuse(chunk: Chunk) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(rooms.store, "restore", refuse)
        group = prompt(range(33))
        rooms.cache.match(group)
        assert not rooms.execute(group, planned(rooms.cache, group, 8))
    after = list(rooms.cache._index)
    assert after == before if isinstance(error, OutOfMemory) else len(after) < len(before)


def test_what_cannot_be_taken_is_not_kept_and_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rooms = Rooms()

    def refuse(*_: object) -> Any:
        raise RuntimeError("no memory for copies")

    monkeypatch.setattr(rooms.store, "take", refuse)
    assert rooms.run(range(33)).num_remaining_tokens == 0
    assert rooms.kept == []
    assert "no memory for copies" in caplog.text


@pytest.mark.parametrize("cuts", [True, False])
@pytest.mark.parametrize("most", [3, 1000])
def test_what_is_on_disk_is_read_and_taken(cuts: bool, most: int) -> None:
    rooms = Rooms(disk=FakeDisk(), cuts=cuts)
    rooms.run(range(33))
    rooms.settle()
    rooms.cache.fit(0)
    rooms.cache.fit(None)
    assert rooms.kept == []
    group = rooms.run(range(33), most)
    assert group.num_cached_tokens == 32
    assert rooms.cache.stats().num_disk_tokens == 32
    assert len(rooms.kept) == 8  # it is in memory again


@pytest.mark.parametrize("cuts", [True, False])
@pytest.mark.parametrize("place", range(8))
def test_a_damaged_file_leads_to_computing_from_there(place: int, cuts: bool) -> None:
    disk = FakeDisk()
    rooms = Rooms(disk=disk, cuts=cuts)
    rooms.run(range(33))
    rooms.settle()
    rooms = Rooms(disk=FakeDisk(dict(disk.files)), cuts=cuts)
    assert rooms.disk is not None
    block = next(block_id for block_id, (header, _) in rooms.disk.files.items() if header.start == place * SIZE)
    header, content = rooms.disk.files[block]
    rooms.disk.files[block] = (header, content[:-1])
    group = rooms.run(range(33))
    whole = (place if cuts else place // 2 * 2) * SIZE
    assert group.num_cached_tokens == (whole if whole >= 8 else 0)  # fewer are not worth it
    assert rooms.held(group) == Held(tuple(range(32)), tuple(range(32)))
    rooms.settle()
    assert len(rooms.disk.files) == 8  # and it is written anew


def test_who_reads_from_the_disk_and_computes_after_all_holds_up_nobody() -> None:
    disk = FakeDisk()
    rooms = Rooms(disk=disk)
    for first in (0, 100):
        rooms.run(range(first, first + 33))
    rooms.settle()
    rooms = Rooms(disk=FakeDisk(dict(disk.files)))
    assert rooms.disk is not None
    mine = prompt(range(33))
    assert rooms.cache.match(mine).waits
    rooms.disk.work()
    rooms.cache.poll()
    for node in [node for node in rooms.cache._index if node.token_ids[0] == 0]:
        rooms.cache._index.drop(node)
    assert not rooms.cache.match(mine).restorable_until
    other = prompt(range(100, 133))
    assert rooms.cache.match(other).waits
    assert rooms.disk.num_jobs  # its blocks are asked for


def test_who_is_to_compute_says_where_to_stop_and_what_it_will_be() -> None:
    rooms = Rooms(cuts=False, step=8)
    match = rooms.cache.match(prompt(range(30), cache_breakpoints=(5, 20)))
    assert match.stop_at == 5
    same = rooms.cache.match(prompt([*range(5), *range(50, 60)], cache_breakpoints=(5,)))
    assert same.key == match.key
    assert rooms.cache.match(prompt(range(30), cache_breakpoints=(5,), cache_salt="x")).key != match.key
    assert rooms.cache.match(prompt([0, 0, *range(30)], cache_breakpoints=(5,))).key != match.key


def test_a_few_tokens_are_not_worth_a_restoring_of_their_own() -> None:
    rooms = Rooms()
    rooms.run(range(8))
    assert rooms.run([*range(7), *range(100, 150)]).num_cached_tokens == 0
    rooms.run(range(10))
    assert rooms.run([*range(9), *range(200, 250)]).num_cached_tokens == 9


def test_a_snapshot_at_each_border_and_every_so_many_tokens() -> None:
    rooms = Rooms(cuts=False, step=16)
    rooms.run(range(41), cache_breakpoints=(10, 30))
    ends = sorted(node.end for node in rooms.cache._index if node.has_state)
    assert ends == [10, 16, 30, 32, 40]
