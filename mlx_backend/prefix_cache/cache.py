"""PrefixCache: keeps computed blocks, and finds those that need not be computed. Owned by the device thread.

It is notified of every computed chunk and of every row that leaves, and returns, for any position of a prompt, the
blocks that match from there. It neither schedules computation nor handles arrays.
"""

from __future__ import annotations

import collections.abc
import logging
from collections.abc import Mapping
from types import MappingProxyType

from mlx_backend.api.errors import OutOfMemory, SequenceFailed, let_go_of_frames
from mlx_backend.api.interface import GenerationRequest, PrefixCacheConfig, PrefixCacheStats
from mlx_backend.core.blocks import BlockStore
from mlx_backend.core.sequence import SequenceGroup, Status, TokenSequence
from mlx_backend.core.step import BlockRef, Chunk, Piece, PromptId, Restore, SequenceId, Span
from mlx_backend.prefix_cache.block_files import BlockFiles
from mlx_backend.prefix_cache.cursor import Cursor, is_kept, is_used
from mlx_backend.prefix_cache.disk import DiskTier
from mlx_backend.prefix_cache.identity import Chain, chain_id, root_id
from mlx_backend.prefix_cache.index import Match, Node, PrefixIndex
from mlx_backend.prefix_cache.loading import Loading
from mlx_backend.prefix_cache.prefix_match import PrefixMatch

logger = logging.getLogger("pippin.prefix_cache")

_LEAST_GAIN = 8
"""Tokens; fewer are quicker to compute with those that follow."""


class PrefixCache:
    """`fingerprint`: digest of all that values depend on. `disk` None: memory alone. `adapters`: digests by name."""

    def __init__(
        self,
        config: PrefixCacheConfig,
        store: BlockStore,
        fingerprint: bytes,
        ram_bytes: int,
        disk: DiskTier | None,
        adapters: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._adapters = adapters
        self._config, self._store, self._fingerprint = config, store, fingerprint
        self._configured_bytes = self._ram_bytes = ram_bytes
        self._index = PrefixIndex(cuts=store.cuts, free=store.free)
        self._files = None if disk is None else BlockFiles(disk, self._index, store, config.max_bytes)
        self._loading = Loading(disk, store.free)
        self._num_cached = {"ram": 0, "disk": 0}
        self._num_evicted = self._num_computed = 0
        self._cursors: dict[PromptId, Cursor] = {}
        """The cursors of prompts that are being computed."""
        self._rows: tuple[TokenSequence, ...] = ()

    # ---- matching ----

    def match(self, group: SequenceGroup) -> PrefixMatch:
        """Return the match of a prompt from its computed part on."""
        if not is_used(group):
            return PrefixMatch()
        cursor, position, limit = self._cursor(group), group.num_computed_tokens, group.num_tokens - 1
        match = self._match(cursor, position, limit)
        if not match.nodes:
            return self._computing(cursor, group, position, limit)
        until = position
        for node in match.nodes:
            if self._payload(node) is None:
                break
            until = min(node.end, match.end)
        if until > position:
            return PrefixMatch(restorable_until=until)
        if self._loading.want(group, match.nodes):
            return PrefixMatch(waits=True)
        starts_again = self._give_up(cursor)
        return self._computing(cursor, group, 0 if starts_again else position, limit, starts_again=starts_again)

    def _match(self, cursor: Cursor, position: int, limit: int) -> Match:
        if cursor.target is not None:
            left = tuple(node for node in cursor.target.nodes if node.end > position)
            return Match(left, cursor.target.end)
        if cursor.gave_up:
            return Match()
        match = self._index.match(cursor.chain, position, limit)
        least = 1 if position and position == cursor.restored else min(_LEAST_GAIN, limit - position)
        is_worth_it = match.end - position >= least
        return match if is_worth_it else Match()

    def _computing(
        self, cursor: Cursor, group: SequenceGroup, position: int, limit: int, *, starts_again: bool = False
    ) -> PrefixMatch:
        """Return the match of a prompt to compute. In a step, one of several prompts with the same key is computed."""
        self._loading.leave(group)
        stop = self._next_border(group, position, limit) if not self._store.cuts else limit
        end = min(stop, (position // cursor.chain.size + 1) * cursor.chain.size) if self._store.cuts else stop
        return PrefixMatch(stop_at=stop, key=cursor.chain.end_id(end), starts_again=starts_again)

    def _next_border(self, group: SequenceGroup, position: int, limit: int) -> int:
        step = self._config.snapshot_tokens
        regular = (position // step + 1) * step
        given = [border for border in group.request.cache_breakpoints if border > position]
        return min(regular, limit, *given)

    def _cursor(self, group: SequenceGroup) -> Cursor:
        cursor = self._cursors.get(group.id)
        if cursor is None:
            self._cursors[group.id] = cursor = Cursor(self._chain(group, group.num_tokens))
        return cursor

    def _chain(self, group: SequenceGroup, num_tokens: int) -> Chain:
        return Chain(self._root(group.request), group.token_ids(0, num_tokens), self._config.chunk_tokens)

    def _root(self, request: GenerationRequest) -> bytes:
        adapter = request.adapter and f"{request.adapter} {self._adapters.get(request.adapter, '')}"
        return root_id(self._fingerprint, request.cache_salt, adapter)

    def _payload(self, node: Node) -> BlockRef | None:
        return self._loading.payloads.get(node) if node.payload is None else node.payload

    # ---- restoring ----

    def pieces(self, group: SequenceGroup, stop: int) -> Restore | None:
        """Return the blocks that restore a prompt from its computed part up to `stop`; None if some have gone."""
        cursor, start = self._cursor(group), group.num_computed_tokens
        match = self._match(cursor, start, group.num_tokens - 1)
        nodes = tuple(node for node in match.nodes if node.start < stop)
        pieces = tuple(
            Piece(payload.id, node.start, max(start, node.start), min(stop, node.end))
            for node in nodes
            if (payload := self._payload(node)) is not None
        )
        if len(pieces) < len(nodes) or not pieces or min(match.end, nodes[-1].end) < stop:
            return None
        cursor.planned, cursor.planned_of = nodes, match
        return Restore(pieces, with_state=not self._store.cuts and stop == match.end)

    def has_all(self, group: SequenceGroup, chunk: Chunk) -> bool:
        """Return whether the blocks of a planned chunk are still there. If not, its restoration is given up."""
        cursor = self._cursor(group)
        planned = [self._payload(node) for node in cursor.planned]
        wanted = [] if chunk.restore is None else [piece.block for piece in chunk.restore.pieces]
        return [payload and payload.id for payload in planned] == wanted

    def restored(self, group: SequenceGroup, chunk: Chunk) -> None:
        """Update the cache after a chunk was restored, and counted."""
        cursor = self._cursor(group)
        nodes, match, cursor.planned = cursor.planned, cursor.planned_of or Match(), ()
        is_whole = self._store.cuts or chunk.stop == match.end
        cursor.target = None if is_whole else match
        cursor.kept = max(cursor.kept, chunk.stop - chunk.stop % cursor.chain.size)
        cursor.restored = chunk.stop
        if chunk.restore is not None:
            for node, piece in zip(nodes, chunk.restore.pieces, strict=True):
                num_new = max(0, piece.stop - max(piece.start, group.num_lost_tokens))
                self._num_cached["disk" if node in self._loading.payloads else "ram"] += num_new
        self._mark(nodes, group.request.system_border)
        self._take_loaded([node for node in nodes if chunk.stop >= min(node.end, match.end)])
        if group.num_remaining_tokens == 0:
            self.forget(group)

    def give_up(self, group: SequenceGroup) -> bool:
        """Give up a planned chunk that lost blocks before it was restored; return whether the prompt starts again."""
        return self._give_up(self._cursor(group))

    def _give_up(self, cursor: Cursor) -> bool:
        """Give up restoring missing blocks and compute instead. Half of a snapshot's prompt is useless."""
        is_half = cursor.target is not None
        if is_half:
            _start_again(cursor)
        return is_half

    def refuse(self, group: SequenceGroup, error: SequenceFailed) -> None:
        """Drop an unusable block and those after it, unless memory alone was short; the prompt starts again."""
        logger.warning("what is kept of a prompt cannot be used, so it is computed: %s", error)
        let_go_of_frames(error)
        cursor = self._cursor(group)
        first = cursor.planned[0]
        if not isinstance(error, OutOfMemory) and self._index.get(first.id) is first:
            self._index.drop(first)
        _start_again(cursor)

    def forget(self, group: SequenceGroup) -> None:
        """Forget a prompt that needs no more computation."""
        self._cursors.pop(group.id, None)

    def _mark(self, nodes: collections.abc.Iterable[Node], system_border: int) -> None:
        """Mark the blocks that belong to a system prompt, although the request that stored them did not mark them."""
        for node in nodes:
            if node.end <= system_border and self._index.get(node.id) is node:
                self._index.mark_system(node)

    def _take_loaded(self, nodes: collections.abc.Sequence[Node]) -> None:
        """Keep used blocks that were read from the disk in memory, if there is room."""
        for node in nodes:
            payload = self._loading.payloads.pop(node, None)
            if payload is None:
                continue
            if node.payload is None and self._index.get(node.id) is node:
                self._make_room(payload.nbytes, node.parent)
            if node.payload is None and self._index.get(node.id) is node and self._has_room(payload.nbytes):
                self._index.place(node, "ram", payload.nbytes, payload)
            else:
                self._store.free(payload.id)
        if nodes and self._index.get(nodes[-1].id) is nodes[-1]:
            self._index.touch(nodes[-1])
            if self._files is not None:
                self._files.used(nodes)

    # ---- storing ----

    def computed(self, group: SequenceGroup, chunk: Chunk) -> None:
        """Store a chunk after it was computed, and counted."""
        self._num_computed += group.num_new_tokens(chunk)
        self.keep(group)
        if group.num_remaining_tokens == 0:
            self.forget(group)

    def keep(self, group: SequenceGroup, *, is_last: bool = False) -> None:
        """Store the computed part. `is_last`: no more of the prompt is computed, so the last short block is stored."""
        if not is_kept(group) or not group.num_computed_tokens:
            return
        cursor, end = self._cursor(group), group.num_computed_tokens
        if cursor.target is not None:
            return
        is_last = is_last or group.num_remaining_tokens == 0
        is_border = is_last or end == self._next_border(group, end - 1, group.num_tokens - 1)
        self._keep(group.id, group, cursor, end, has_end=is_last or (is_border and not self._store.cuts))

    def keep_given_up(self, sequence: TokenSequence) -> None:
        """Store the computed part of a sequence that ends, if its prompt is no longer needed before it is computed."""
        group = sequence.group
        others = (other for other in group.sequences if other is not sequence)
        if sequence.status is Status.PENDING and all(other.status is Status.ENDED for other in others):
            self.leave(group)

    def leave(self, group: SequenceGroup) -> None:
        """Store the computed part of a prompt that leaves; nothing more is read for it."""
        self.keep(group, is_last=True)
        self.forget(group)
        self._loading.drop(group)

    def change_rows(self, sequences: tuple[TokenSequence, ...]) -> None:
        """Set the rows of the next batch. The content of the others is stored before they leave."""
        staying = set(sequences)
        for sequence in self._rows:
            if sequence not in staying:
                self._keep_row(sequence)
        self._rows = sequences

    def lose_rows(self) -> None:
        """Forget all rows after their content was lost."""
        self._rows = ()

    def _keep_row(self, sequence: TokenSequence) -> None:
        """Store a sequence, its output included."""
        group = sequence.group
        if not is_kept(group):
            return
        token_ids = (*sequence.request.prompt_ids, *sequence.output_ids)
        end = min(sequence.num_computed_tokens, len(token_ids))
        cursor = Cursor(Chain(self._root(sequence.request), token_ids[:end], self._config.chunk_tokens))
        self._keep(sequence.id, group, cursor, end, has_end=end == sequence.num_computed_tokens)

    def _keep(
        self, source: PromptId | SequenceId, group: SequenceGroup, cursor: Cursor, end: int, *, has_end: bool
    ) -> None:
        """Add the missing blocks before `end`; with `has_end`, also the short one that ends there."""
        chain = cursor.chain
        first, last = cursor.kept // chain.size, end // chain.size
        known: list[Node] = []
        while first < last and (node := self._index.get(chain.ids[first])) is not None:
            known.append(node)
            first += 1
        if known:
            self._index.touch(known[-1])
            self._mark(known, group.request.system_border)
        starts = range(first * chain.size, last * chain.size, chain.size)
        spans = [Span(start, start + chain.size) for start in starts]
        if has_end and end:
            start = (end - 1) // chain.size * chain.size
            spans = [span for span in spans if span.start < start]
            spans.append(Span(start, end, with_state=not self._store.cuts))
        cursor.kept = last * chain.size
        if spans and not self._is_known(chain, spans[0]):
            self._add(source, chain, spans, group.request.system_border)

    def _is_known(self, chain: Chain, span: Span) -> bool:
        """Return whether the first block to add is already covered, or follows a block that is gone."""
        parent = self._index.get(chain.before(span.start // chain.size))
        if parent is None:
            return span.start > 0
        token_ids = chain.token_ids[span.start : span.stop]
        node = self._index.get(chain_id(parent.id, token_ids))
        if node is not None:
            self._index.touch(node)
            return node.has_state or not span.with_state
        return self._index.covers(parent, token_ids)

    def _add(self, source: PromptId | SequenceId, chain: Chain, spans: list[Span], system_border: int) -> None:
        parent = self._index.get(chain.before(spans[0].start // chain.size)) or self._index.root(chain.root)
        spans = spans[: self._num_fitting(spans, parent)]
        if not spans or (parent.parent is not None and self._index.get(parent.id) is not parent):
            return
        try:
            payloads = self._store.take(source, spans)
        except (RuntimeError, MemoryError) as error:
            logger.warning("nothing was kept of a prompt: %s", error)
            return
        for span, payload in zip(spans, payloads, strict=True):
            node = self._index.add(
                parent,
                chain.token_ids[span.start : span.stop],
                has_state=span.with_state,
                is_system=span.stop <= system_border,
            )
            self._index.place(node, "ram", payload.nbytes, payload)
            if span.with_state and not node.has_state:
                node.has_state = True
                if self._files is not None:
                    self._files.rewrite(node)
            if self._files is not None:
                self._files.add(node)
            parent = node if node.end % chain.size == 0 else parent

    def _num_fitting(self, spans: collections.abc.Sequence[Span], parent: Node) -> int:
        """Make room, and return how many of the spans, from the first on, fit."""
        sizes = [self._size(span) for span in spans]
        while sizes and (sum(sizes) > self._ram_bytes or not self._ram_bytes):
            sizes.pop()
        self._make_room(sum(sizes), parent)
        while sizes and not self._has_room(sum(sizes)):
            sizes.pop()
        return len(sizes)

    def _size(self, span: Span) -> int:
        state = self._store.state_bytes if span.with_state else 0
        return (span.stop - span.start) * self._store.bytes_per_token + state

    def _make_room(self, num_bytes: int, keeping: Node | None) -> None:
        self._num_evicted += self._index.shed("ram", self._ram_bytes - num_bytes, keeping)
        if self._files is not None:
            self._files.forget()

    def _has_room(self, num_bytes: int) -> bool:
        return self._index.num_bytes("ram") + num_bytes <= self._ram_bytes

    # ---- between steps ----

    def fit(self, free_bytes: int | None) -> None:
        """Hold no more than live requests leave free. None: no bound but the configured one."""
        self._ram_bytes = self._configured_bytes if free_bytes is None else min(self._configured_bytes, free_bytes)
        if self._index.num_bytes("ram") > self._ram_bytes:
            self._make_room(0, None)

    @property
    def has_news(self) -> bool:
        """Whether the I/O thread has results since `poll`."""
        return self._files is not None and self._files.has_news

    def poll(self) -> None:
        """Process the I/O thread's results, and give it more to do."""
        if self._files is not None:
            self._files.poll(self._loading.arrived)
            self._loading.drop_unwanted()

    def stats(self) -> PrefixCacheStats:
        return PrefixCacheStats(
            ram_bytes=self._index.num_bytes("ram"),
            disk_bytes=self._index.num_bytes("disk"),
            num_ram_blocks=self._index.count("ram"),
            num_disk_blocks=self._index.count("disk"),
            num_ram_tokens=self._num_cached["ram"],
            num_disk_tokens=self._num_cached["disk"],
            num_computed_tokens=self._num_computed,
            num_evicted=self._num_evicted,
            num_disk_evicted=0 if self._files is None else self._files.num_evicted,
        )

    def clear(self) -> None:
        """Release everything after memory ran out. The rows are lost."""
        self.lose_rows()
        self._index.shed("ram", 0)
        if self._files is not None:
            self._files.forget()

    def close(self) -> None:
        """Write all waiting blocks."""
        if self._files is not None:
            self._files.close()


def _start_again(cursor: Cursor) -> None:
    cursor.target, cursor.gave_up, cursor.kept, cursor.planned = None, True, 0, ()
