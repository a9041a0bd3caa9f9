"""Rows against mlx-lm's own caches: what a row's token sees is what it would see alone. And the bytes held."""

from __future__ import annotations

import random
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache

from mlx_backend.api.interface import SamplingParams
from mlx_backend.core.row import Row
from mlx_backend.core.step import NewRow
from mlx_backend.kv_cache import grouping, spec
from mlx_backend.kv_cache.batch import _UNUSED_STEPS, RowBatch
from mlx_backend.kv_cache.build import fork
from mlx_backend.kv_cache.codec import FULL
from mlx_backend.kv_cache.groups import GroupedColumns
from mlx_backend.kv_cache.plain import PlainRows
from mlx_backend.kv_cache.plan import CachePlan, CacheShape, PartShape, RowSizes
from mlx_backend.kv_cache.rotating import QuantizedWindow
from mlx_backend.kv_cache.rows import Lengths

pytestmark = pytest.mark.mlx

HEADS, DIM, WINDOW = 2, 4, 8


def template() -> list[Any]:
    return [KVCache(), RotatingKVCache(max_size=WINDOW), CacheList(ArraysCache(1), KVCache())]


def token(seed: int) -> tuple[Any, Any]:
    key = mx.random.key(seed)
    return mx.random.normal((1, HEADS, 1, DIM), key=key), mx.random.normal((1, HEADS, 1, DIM + 2), key=key)


def row_of(length: int, caches: list[Any], name: int = 0, max_tokens: int = 9) -> Row:
    """A row that is to join with caches of so many tokens."""
    new = NewRow(
        id=name,
        prompt=name,
        ordinal=0,
        prompt_ids=(0,) * (length + 1),
        max_num_tokens=length + 1 + max_tokens,
        sampling=SamplingParams(),
        key=0,
    )
    return Row.of(new, caches)


class Alone:
    """A sequence in mlx-lm's own caches, as the oracle."""

    def __init__(self, name: int, length: int) -> None:
        self.name, self.length = name, length
        self.caches = template()
        self.attended: list[Any] = []
        for position in range(length):
            self._write(position)
        both = zip(self.caches, template(), strict=True)
        self.row = row_of(length, [fresh if cache.empty() else fork(cache) for cache, fresh in both], name, 99)

    def kv(self, position: int) -> tuple[Any, Any]:
        return token(1000 * self.name + position)

    def step(self) -> list[Any]:
        """Write one token; what plain and window attention see of it, as sets of (key, value) rows."""
        self._write(self.length)
        self.length += 1
        return self.attended

    def _write(self, position: int) -> None:
        keys, values = self.kv(position)
        plain, ring, both = self.caches
        seen = [plain.update_and_fetch(keys, values), ring.update_and_fetch(keys, values)]
        both[1].update_and_fetch(keys, values)
        both[0][0] = mx.full((1, 3), 1000.0 * self.name + position)
        self.attended = [rows_of(k, v, None, 0) for k, v in seen]


def rows_of(keys: Any, values: Any, mask: Any, row: int) -> set[tuple[float, ...]]:
    """The key-value columns a row attends to, as a set: attention knows no order."""
    visible = [True] * keys.shape[2] if mask is None else mask[row if mask.shape[0] > 1 else 0, 0, 0].tolist()
    joined = mx.concatenate([keys[row], values[row]], axis=-1).swapaxes(0, 1).reshape(keys.shape[2], -1).tolist()
    return {tuple(column) for column, seen in zip(joined, visible, strict=True) if seen}


def seen_by(keys: Any, values: Any, mask: Any, row: int) -> set[tuple[float, ...]]:
    """The same of a row of the batch, in whichever group it lies."""
    if not isinstance(keys, GroupedColumns):
        return rows_of(keys, values, mask, row)
    place = next(place for place, group in enumerate(keys.groups) if row < group.first + len(group.rows))
    own = None if mask is None else mask.parts[place]
    return rows_of(keys.parts[place], values.parts[place], own, row - keys.groups[place].first)


def step_together(batch: RowBatch, alone: dict[Row, Alone]) -> None:
    """One decode step of the batch and of each alone; compare what they see, and the recurrent state."""
    members = [alone[row] for row in batch.rows]
    kv = [member.kv(member.length) for member in members]
    keys, values = mx.concatenate([k for k, _ in kv]), mx.concatenate([v for _, v in kv])
    plain, ring, both = batch.caches
    masks = [plain.make_mask(1), ring.make_mask(1, window_size=WINDOW)]
    offset = plain.offset
    lengths = [member.length for member in members]
    assert lengths == [offset] * len(members) if isinstance(offset, int) else offset.tolist() == lengths
    seen = [plain.update_and_fetch(keys, values), ring.update_and_fetch(keys, values)]
    both[1].update_and_fetch(keys, values)
    for row, member in enumerate(members):
        if both[0][0] is not None and member.length > 0:
            assert both[0][0][row].tolist() == [1000.0 * member.name + member.length - 1] * 3
        expected = member.step()
        assert [seen_by(k, v, mask, row) for (k, v), mask in zip(seen, masks, strict=True)] == expected
        member.row.num_started_tokens += 1
    both[0][0] = mx.array([[1000.0 * member.name + member.length - 1] * 3 for member in members])
    batch.advance()


GROUPINGS: dict[str, Any] = {
    "in one group": None,
    "each apart": lambda num_tokens: 1 << (40 + num_tokens),
    "as rows are": lambda num_tokens: num_tokens << 30,
}


@pytest.mark.parametrize("grouping", GROUPINGS)
@given(seed=st.integers(0, 2**32), max_length=st.sampled_from([3, 12, 40]), spare=st.sampled_from([0, 1 << 62]))
@settings(max_examples=6, deadline=None)
def test_any_joining_and_leaving(grouping: str, seed: int, max_length: int, spare: int) -> None:
    source = random.Random(seed)
    batch = RowBatch(template(), GROUPINGS[grouping])
    batch.spare_bytes = spare
    alone: dict[Row, Alone] = {}
    for name in range(1, 10):
        for row in list(alone):
            if source.random() < 0.3:
                del alone[row]
        for extra in range(source.randint(0 if alone else 1, 3)):
            member = Alone(20 * name + extra, source.randint(0, max_length))
            alone[member.row] = member
        batch.set_rows(list(alone))
        assert set(batch.rows) == set(alone)
        for _ in range(source.randint(1, 4)):
            batch.prepare()
            step_together(batch, alone)


def test_a_long_row_that_leaves_gives_its_memory_back() -> None:
    def row(length: int) -> Row:
        cache = KVCache()
        cache.update_and_fetch(mx.zeros((1, 8, length, 64)), mx.zeros((1, 8, length, 64)))
        return row_of(length, [cache])

    batch = RowBatch([KVCache()])
    long, short = row(9000), row(10)
    row_bytes = 2 * 8 * 64 * 4
    batch.set_rows([long, short])
    assert batch.nbytes == 2 * 9216 * row_bytes
    batch.set_rows([short])
    assert batch.nbytes == 256 * row_bytes
    batch.set_rows([])
    assert batch.nbytes == 0


def test_the_only_row_takes_over_its_arrays_without_a_copy() -> None:
    cache = KVCache()
    cache.update_and_fetch(mx.ones((1, 2, 10, 4)), mx.ones((1, 2, 10, 4)))
    keys = cache.keys
    batch = RowBatch([KVCache()])
    batch.set_rows([row_of(10, [cache])])
    assert arrays_of(batch)[0] is keys


def test_rows_in_groups_hold_what_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "_SLACK_BYTES", 0)
    part = PartShape(8, 64, 4)
    sizes = RowSizes([CachePlan(CacheShape("plain", part, part))])
    before = mx.get_active_memory()
    batch = RowBatch([KVCache()], sizes)
    lengths = [40 + 190 * place for place in range(16)]
    rows = [row_of(length, [filled(length)], place) for place, length in enumerate(lengths)]
    batch.set_rows(rows)
    mx.eval(arrays_of(batch))
    held = mx.get_active_memory() - before
    numbers = grouping.divide([length + 1 for length in lengths], sizes)
    groups = [[n + 1 for n, each in zip(lengths, numbers, strict=True) if each == at] for at in set(numbers)]
    assert batch.num_groups == len(groups) > 2
    assert batch.nbytes == grouping.size_of(groups, sizes)
    assert held == pytest.approx(batch.nbytes, rel=0.01)
    assert held <= grouping.most_bytes([length + 1 for length in lengths], sizes) <= 1.15 * held


def test_a_place_is_kept_for_the_next_row_and_given_up_when_none_comes() -> None:
    batch, token = RowBatch([KVCache()], lambda num_tokens: 4096 * num_tokens, max_groups=1), 2 * 8 * 64 * 4
    batch.spare_bytes = 1 << 62
    rows = [row_of(length, [filled(length)], place) for place, length in enumerate((2000, 10, 20))]
    batch.set_rows(rows[:2])
    held = batch.nbytes
    assert held == 2 * 2048 * token
    batch.set_rows([rows[1]])
    assert batch.nbytes == held
    batch.set_rows(rows[1:])
    assert batch.nbytes == held
    for _ in range(_UNUSED_STEPS):
        batch.prepare()
    assert batch.nbytes == held
    batch.prepare()
    assert batch.nbytes == 2 * 256 * token


def test_a_place_is_given_up_when_its_memory_is_needed() -> None:
    batch, token = RowBatch([KVCache()], lambda num_tokens: 4096 * num_tokens, max_groups=1), 2 * 8 * 64 * 4
    batch.spare_bytes = 1 << 62
    rows = [row_of(length, [filled(length)], place) for place, length in enumerate((2000, 10, 20))]
    batch.set_rows(rows)
    assert batch.nbytes == 4 * 2048 * token
    batch.set_rows(rows[1:])
    batch.spare_bytes = batch.unused_bytes
    batch.prepare()
    assert batch.nbytes == 4 * 2048 * token
    batch.spare_bytes -= 1
    batch.prepare()
    assert batch.nbytes == 2 * 256 * token


def arrays_of(batch: RowBatch) -> list[Any]:
    return [array for cache in batch.caches for member in cache.members.values() for array in member.arrays]


def test_rows_joining_together_are_allocated_once() -> None:
    batch = RowBatch([KVCache()])
    rows = []
    for index in range(5):
        cache = KVCache()
        cache.update_and_fetch(mx.ones((1, 2, 10, 4)), mx.ones((1, 2, 10, 4)))
        rows.append(row_of(10, [cache], index))
    batch.set_rows(rows)
    assert arrays_of(batch)[0].shape == (5, 2, 256, 4)


def test_a_fork_does_not_write_to_its_twin() -> None:
    cache = KVCache()
    cache.update_and_fetch(mx.ones((1, 1, 3, 2)), mx.ones((1, 1, 3, 2)))
    twin = fork(cache)
    twin.update_and_fetch(mx.zeros((1, 1, 1, 2)), mx.zeros((1, 1, 1, 2)))
    cache.update_and_fetch(2 * mx.ones((1, 1, 1, 2)), 2 * mx.ones((1, 1, 1, 2)))
    assert cache.keys[0, 0, 3].tolist() == [2, 2]
    assert twin.keys[0, 0, 3].tolist() == [0, 0]
    assert twin.keys[0, 0, :3].tolist() == [[1, 1]] * 3


def test_a_batch_takes_one_token_per_row() -> None:
    batch = RowBatch([KVCache()])
    batch.set_rows([row_of(10, [filled(10)])])
    (cache,) = batch.caches
    with pytest.raises(ValueError, match="one token per row"):
        cache.update_and_fetch(mx.zeros((1, 1, 2, 4)), mx.zeros((1, 1, 2, 4)))


def test_what_cannot_be_batched() -> None:
    assert spec.unbatched_reason(template()) is None
    assert "keeps the first 4" in (spec.unbatched_reason([RotatingKVCache(max_size=8, keep=4)]) or "")
    assert "int" in (spec.unbatched_reason([3]) or "")


def filled(length: int, heads: int = 8, dim: int = 64) -> KVCache:
    cache = KVCache()
    cache.update_and_fetch(mx.zeros((1, heads, length, dim)), mx.zeros((1, heads, length, dim)))
    return cache


def test_columns_shrink_when_the_longest_row_leaves_and_others_stay() -> None:
    batch, token = RowBatch([KVCache()]), 2 * 8 * 64 * 4
    rows = [row_of(length, [filled(length)], place) for place, length in enumerate((9000, 10, 500))]
    batch.set_rows(rows)
    batch.set_rows(rows[1:])
    assert batch.nbytes == 2 * 512 * token
    batch.set_rows(rows[1:2])
    assert batch.nbytes == 256 * token


def test_columns_shrink_to_what_the_others_need_soon_however_long_they_may_become() -> None:
    batch, token = RowBatch([KVCache()]), 2 * 8 * 64 * 4
    rows = [row_of(length, [filled(length)], place, 100_000) for place, length in enumerate((9000, 10, 500))]
    batch.set_rows(rows)
    batch.set_rows(rows[1:])
    assert batch.nbytes <= 2 * 1280 * token
    batch.set_rows(rows[1:2])
    assert batch.nbytes <= 768 * token


def test_what_was_reserved_for_a_row_that_left_is_not_held_for_the_next() -> None:
    cache = PlainRows(Lengths())
    cache.reserve(4, 9000)
    cache.join(filled(10), 10)
    assert cache.arrays[0].shape[0] >= 4 and cache.arrays[0].shape[2] >= 9000
    cache.leave(0)
    cache.join(filled(10), 10)
    assert cache.arrays[0].shape[:3] == (1, 8, 256)


def test_a_window_holds_no_more_than_its_columns_after_a_long_chunk() -> None:
    cache = QuantizedWindow(FULL, FULL, window=WINDOW)
    for length in (100, 3, 50):
        cache.update_and_fetch(mx.zeros((1, HEADS, length, DIM)), mx.zeros((1, HEADS, length, DIM)))
        mx.eval(cache.arrays)
        assert [array.shape[2] for array in cache.arrays] == [WINDOW, WINDOW]


def test_columns_shrink_alone_and_rows_do() -> None:
    token = 2 * 8 * 64 * 4

    def batch_of(*lengths: int) -> tuple[RowBatch, list[Row]]:
        batch = RowBatch([KVCache()])
        rows = [row_of(length, [filled(length)], place) for place, length in enumerate(lengths)]
        batch.set_rows(rows)
        return batch, rows

    batch, rows = batch_of(9000, 10, 20, 30)
    batch.set_rows(rows[1:])
    assert batch.nbytes == 3 * 256 * token
    batch, rows = batch_of(10, 10, 10, 10, 10)
    assert batch.nbytes == 5 * 256 * token
    batch.set_rows(rows[:2])
    assert batch.nbytes == 2 * 256 * token


def batch_of_layers(num_rows: int, length: int, num_layers: int = 3) -> tuple[RowBatch, list[Row]]:
    batch = RowBatch([KVCache() for _ in range(num_layers)])
    rows = [row_of(length, [filled(length) for _ in range(num_layers)], place) for place in range(num_rows)]
    batch.set_rows(rows)
    mx.eval(arrays_of(batch))
    mx.clear_cache()
    return batch, rows


def test_rows_that_leave_together_hold_one_row_more_at_most() -> None:
    batch, rows = batch_of_layers(8, 1000)
    batch.spare_bytes = 1 << 62
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    batch.set_rows(rows[1::2])
    mx.eval(arrays_of(batch))
    assert mx.get_peak_memory() - before <= 1.1 * batch.nbytes / 8
    assert set(batch.rows) == set(rows[1::2])


@pytest.mark.parametrize("leaving", range(4))
def test_a_row_that_leaves_moves_one_row_and_nothing_else(leaving: int) -> None:
    batch, rows = batch_of_layers(4, 1000)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    batch.spare_bytes = 1 << 62
    batch.set_rows([row for place, row in enumerate(rows) if place != leaving])
    mx.eval(arrays_of(batch))
    row_bytes = batch.nbytes / 4  # the place stays for the next row
    assert mx.get_peak_memory() - before <= 1.1 * row_bytes
    assert batch.rows == [row for row in (rows[3] if place == leaving else rows[place] for place in range(3))]


@pytest.mark.parametrize("leaving", range(4))
def test_a_row_that_takes_the_place_of_another_moves_no_other(leaving: int) -> None:
    """Also where nothing may be spare."""
    batch, rows = batch_of_layers(4, 1000)
    new = row_of(900, [filled(900) for _ in range(3)], 4)
    mx.eval([(cache.keys, cache.values) for cache in new.caches or ()])
    held, before = batch.nbytes, mx.get_active_memory()
    mx.reset_peak_memory()
    batch.set_rows([*(row for place, row in enumerate(rows) if place != leaving), new])
    mx.eval(arrays_of(batch))
    assert batch.nbytes == held
    assert mx.get_peak_memory() - before <= 1.1 * held / 4


def test_rows_that_shrink_give_their_memory_back() -> None:
    before = mx.get_active_memory()
    batch, rows = batch_of_layers(16, 1000)
    for num_left in (8, 4, 2, 1):
        batch.set_rows(rows[:num_left])
        mx.eval(arrays_of(batch))
        held = mx.get_active_memory() - before
        assert held <= 1.05 * batch.nbytes + 4096, f"{held} bytes are held, {batch.nbytes} are said to be"
