"""What tests put around the prefix cache: a store of snapshots, a disk that does as it is told when told to, prompts.

No MLX, no threads, no files.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_backend.api.errors import SequenceFailed
from mlx_backend.api.interface import GenerationRequest
from mlx_backend.core.sequence import SequenceGroup, build_groups
from mlx_backend.core.sequence import TokenSequence as Row
from mlx_backend.core.step import BlockId, BlockRef, Chunk, PromptId, SequenceId, Span
from mlx_backend.prefix_cache.cache import PrefixCache
from mlx_backend.prefix_cache.disk import Read, Written
from mlx_backend.prefix_cache.files import Header, file_bytes


def prompt(tokens: Iterable[int], **changes: Any) -> SequenceGroup:
    fields = {"request_id": "test", "prompt_ids": tuple(tokens), "max_tokens": 8, **changes}
    (group,) = build_groups([GenerationRequest(**fields)])
    return group


@dataclass(frozen=True, slots=True)
class Held:
    """A prompt's caches: the tokens in what can be cut, and those that what cannot be cut has seen."""

    lanes: tuple[int, ...] = ()
    seen: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """A block of them; `seen` where there is a snapshot."""

    tokens: tuple[int, ...]
    seen: tuple[int, ...] | None
    nbytes: int


class SnapshotStore:
    """Implements `core.blocks.BlockStore` for caches of both kinds, and what a runner does with a chunk.

    What is put together wrongly is an AssertionError; a block, a prompt or a row that is not there is a KeyError.
    """

    kinds = (("test", "as snapshots"),)

    def __init__(self, bytes_per_token: int = 4, state_bytes: int = 8, *, cuts: bool = False) -> None:
        self.bytes_per_token, self.cuts = bytes_per_token, cuts
        self.state_bytes = 0 if cuts else state_bytes
        self.blocks: dict[BlockId, Kept] = {}
        self.prompts: dict[PromptId, Held] = {}
        self.rows: dict[SequenceId, Row] = {}
        """Sequences that have a row; what its caches hold is read off them."""
        self._num_made = 0

    def take(self, source: PromptId | SequenceId, spans: Sequence[Span]) -> tuple[BlockRef, ...]:
        assert not self.prompts.keys() & self.rows.keys(), "an id of two"
        held = self.prompts.get(source) or self._of_row(self.rows[source])
        return tuple(self.hold(self._taken(held, span)) for span in spans)

    def _of_row(self, row: Row) -> Held:
        tokens = (*row.request.prompt_ids, *row.output_ids)[: row.num_computed_tokens]
        return Held(tokens, tokens)

    def _taken(self, held: Held, span: Span) -> Kept:
        assert span.stop <= len(held.lanes)
        if span.with_state:
            assert not self.cuts
            assert held.seen == held.lanes[: span.stop], "a snapshot of another place"
        size = (span.stop - span.start) * self.bytes_per_token + span.with_state * self.state_bytes
        return Kept(held.lanes[span.start : span.stop], held.seen if span.with_state else None, size)

    def hold(self, kept: Kept) -> BlockRef:
        self._num_made += 1
        self.blocks[self._num_made] = kept
        return BlockRef(self._num_made, kept.nbytes)

    def free(self, block: BlockId) -> None:
        del self.blocks[block]

    def dump(self, block: BlockId) -> tuple[Any, list[memoryview]]:
        kept = self.blocks[block]
        buffers = [memoryview(array("I", kept.tokens).tobytes())]
        if kept.seen is not None:
            buffers.append(memoryview(array("I", kept.seen).tobytes()))
        return {"num": len(kept.tokens), "has": kept.seen is not None}, buffers

    def load(self, arrays: Any, data: memoryview) -> BlockRef:
        numbers = array("I")
        numbers.frombytes(data)
        tokens = tuple(numbers)
        own, seen = tokens[: arrays["num"]], tokens[arrays["num"] :] if arrays["has"] else None
        return self.hold(Kept(own, seen, len(own) * self.bytes_per_token + arrays["has"] * self.state_bytes))

    # ---- a runner's part ----

    def restore(self, chunk: Chunk) -> None:
        assert chunk.restore is not None
        held, pieces = self.prompts.get(chunk.prompt, Held()), chunk.restore.pieces
        assert chunk.start == pieces[0].start
        assert chunk.stop == pieces[-1].stop
        lanes = held.lanes
        for piece in pieces:
            assert piece.block_start <= piece.start == len(lanes)
            kept = self.blocks[piece.block].tokens[piece.start - piece.block_start : piece.stop - piece.block_start]
            wanted = chunk.token_ids[piece.start - chunk.start : piece.stop - chunk.start]
            assert kept == wanted, "a block of other tokens"
            lanes += kept
        seen = lanes if self.cuts else held.seen
        if chunk.restore.with_state:
            assert self.blocks[pieces[-1].block].seen == lanes, "a snapshot of another place"
            seen = lanes
        self.prompts[chunk.prompt] = Held(lanes, seen)

    def compute(self, chunk: Chunk) -> None:
        """It goes on from what is there."""
        held = self.prompts.get(chunk.prompt, Held())
        assert len(held.lanes) == chunk.start, "computed on something else"
        assert held.seen == held.lanes, "computed on half of what is needed"
        after = held.lanes + chunk.token_ids
        self.prompts[chunk.prompt] = Held(after, after)

    def drop(self, prompt_id: PromptId) -> None:
        self.prompts.pop(prompt_id, None)


def planned(cache: PrefixCache, group: SequenceGroup, until: int) -> Chunk:
    """What is known of a prompt, up to `until`, as a chunk of a plan."""
    restore = cache.pieces(group, until)
    assert restore is not None, "the match says that it is there"
    return group.chunk(group.num_computed_tokens, until, restore)


def execute(cache: PrefixCache, store: SnapshotStore, group: SequenceGroup, chunk: Chunk) -> bool:
    """What becomes of a planned chunk; False where it was to be restored and cannot be."""
    if chunk.restore is not None and not cache.has_all(group, chunk):
        if cache.give_up(group):
            start_again(store, group)
        return False
    try:
        (store.compute if chunk.restore is None else store.restore)(chunk)
    except SequenceFailed as error:
        start_again(store, group)
        cache.refuse(group, error)
        return False
    assert store.prompts[group.id].lanes == group.token_ids(0, chunk.stop)
    group.num_computed_tokens = chunk.stop
    if chunk.restore is not None and not group.output_ids:
        group.num_cached_tokens += chunk.num_tokens
    (cache.computed if chunk.restore is None else cache.restored)(group, chunk)
    return True


def blocks_of(cache: PrefixCache) -> list[BlockRef]:
    """What a store is to hold for the cache: what is in the tree's memory, and what was read for a prompt."""
    in_memory = [node.payload for node in cache._index if node.payload is not None]
    return [*in_memory, *cache._loading.payloads.values()]


def check_blocks(cache: PrefixCache, store: SnapshotStore) -> None:
    """The store holds each block once, and no more; their sizes are what the tree says."""
    refs = blocks_of(cache)
    assert sorted(ref.id for ref in refs) == sorted(store.blocks)
    assert all(ref.nbytes == store.blocks[ref.id].nbytes for ref in refs)
    assert all(node.payload is None or node.payload.nbytes == node.sizes["ram"] for node in cache._index)


def start_again(store: SnapshotStore, group: SequenceGroup) -> None:
    group.num_computed_tokens = group.num_cached_tokens = 0
    store.drop(group.id)


@dataclass
class FakeDisk:
    """Has DiskTier's methods; `work` does what was asked first. `files`: (header, bytes) by id."""

    files: dict[bytes, tuple[Header, bytes]] = field(default_factory=dict)
    is_full: bool = False
    is_open: bool = False

    def __post_init__(self) -> None:
        self._jobs: deque[tuple[str, Any]] = deque()
        self._results: deque[Written | Read] = deque()

    def open(self) -> list[tuple[Header, int, float]]:
        self.is_open = True
        return [(header, file_bytes(header), float(place)) for place, (header, _) in enumerate(self.files.values())]

    def make_room_beside(self, own_bytes: int, max_bytes: int) -> int:
        return 0

    def write(self, header: Header, buffers: Sequence[memoryview]) -> None:
        content = b"".join(buffers)
        assert len(content) == header.num_bytes
        self._jobs.append(("write", (header, content)))

    def read(self, block_ids: Iterable[bytes]) -> None:
        self._jobs.extend(("read", block_id) for block_id in block_ids)

    def remove(self, block_ids: Iterable[bytes]) -> None:
        self._jobs.extend(("remove", block_id) for block_id in block_ids)

    def used(self, block_ids: Iterable[bytes]) -> None:
        self._jobs.extend(("used", block_id) for block_id in block_ids)

    @property
    def has_results(self) -> bool:
        return bool(self._results)

    def results(self) -> Iterator[Written | Read]:
        while self._results:
            yield self._results.popleft()

    def close(self) -> None:
        self.work()
        self.is_open = False

    # ---- the test's part ----

    @property
    def num_jobs(self) -> int:
        return len(self._jobs)

    @property
    def num_bytes(self) -> int:
        return sum(file_bytes(header) for header, _ in self.files.values())

    def work(self, most: int | None = None) -> None:
        while self._jobs and most != 0:
            most = None if most is None else most - 1
            self._do(*self._jobs.popleft())

    def _do(self, kind: str, asked: Any) -> None:
        if kind == "write":
            header, content = asked
            self.files.pop(header.id, None)
            if not self.is_full:
                self.files[header.id] = (header, content)
            self._results.append(Written(header.id, None if self.is_full else file_bytes(header)))
        elif kind == "read":
            found = self.files.get(asked)
            is_whole = found is not None and len(found[1]) == found[0].num_bytes
            if found is not None and not is_whole:
                del self.files[asked]
            block = (found[0], memoryview(found[1])) if found is not None and is_whole else None
            self._results.append(Read(asked, block))
        elif kind == "remove":
            self.files.pop(asked, None)
        elif asked in self.files:
            self.files[asked] = self.files.pop(asked)
