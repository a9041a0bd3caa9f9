"""Rows in groups by length against rows padded to the longest: bytes, attention time, and copies of a turnover.

A part of `python -m bench.large`. The KV cache of an 8B model at half its width, in float32, which a CPU computes
faster than float16, without the rest of the model. The baseline is the same batch with one group and no spare places.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import mlx.core as mx
from mlx_lm.models.cache import KVCache
from rich.console import Console
from rich.table import Table

from mlx_backend.api.interface import SamplingParams
from mlx_backend.core.row import Row
from mlx_backend.core.step import NewRow
from mlx_backend.kv_cache import attention
from mlx_backend.kv_cache.batch import RowBatch
from mlx_backend.kv_cache.grouping import MAX_GROUPS
from mlx_backend.kv_cache.plan import CachePlan, CacheShape, PartShape, RowSizes

HEADS, KV_HEADS, DIM, NUM_LAYERS = 32, 8, 64, 4
SHAPE = CacheShape("plain", PartShape(KV_HEADS, DIM, 4), PartShape(KV_HEADS, DIM, 4))
SIZES = RowSizes([CachePlan(SHAPE)] * 36)
"""Groups are chosen by the sizes of 36 layers, though only 4 are computed."""
MIXES = {
    "1 x 8,000 + 15 x 200": [8000] + [200] * 15,
    "32 of 40 to 3,000": [40 + 95 * place for place in range(32)],
    "16 x 1,000": [1000] * 16,
}
NUM_STEPS = 5


def print_groups() -> None:
    """Print bytes and milliseconds of each mix, padded and in groups."""
    attention.install()
    table = Table("rows", "groups", "padded, GB", "groups, GB", "apart, GB", "step padded, ms", "step groups, ms")
    for name, lengths in MIXES.items():
        padded, padded_ms, _ = _measured(lengths, 1)
        grouped, grouped_ms, num_groups = _measured(lengths, MAX_GROUPS)
        apart = sum(map(SIZES, (length + 1 for length in lengths))) * NUM_LAYERS / 36
        sizes = (f"{each / 1e9:.3f}" for each in (padded, grouped, apart))
        table.add_row(name, str(num_groups), *sizes, f"{padded_ms:.1f}", f"{grouped_ms:.1f}")
    Console(width=120).print(table)


def print_turnover() -> None:
    """Print the cost of a row that leaves and another that joins, step after step."""
    table = Table("16 x 2,000, a row leaves and one joins", "ms", "peak over the batch, MB", "one row, MB")
    for name, spare in (("exact capacity", 0), ("its place is kept", 1 << 62)):
        took_ms, peak, row_bytes = _turnover(spare)
        table.add_row(name, f"{took_ms:.1f}", f"{peak / 1e6:.1f}", f"{row_bytes / 1e6:.1f}")
    Console(width=120).print(table)


def print_leaving() -> None:
    """Print time, and peak of memory, when rows leave a batch."""
    table = Table("rows that leave, of 16", "ms", "peak over the batch, MB", "one row, MB")
    for name, leaving in (("the first", {0}), ("the last", {15}), ("half", set(range(0, 16, 2)))):
        batch = RowBatch([KVCache() for _ in range(NUM_LAYERS)])
        rows = [_row(place, 2000) for place in range(16)]
        batch.spare_bytes = 1 << 62
        batch.set_rows(rows)
        mx.eval(_arrays(batch))
        mx.clear_cache()
        row_bytes, base = batch.nbytes / 16, mx.get_active_memory()
        mx.reset_peak_memory()
        began = time.perf_counter()
        batch.set_rows([each for place, each in enumerate(rows) if place not in leaving])
        mx.eval(_arrays(batch))
        took_ms = 1e3 * (time.perf_counter() - began)
        peak = max(mx.get_peak_memory() - base, 0) / 1e6
        table.add_row(name, f"{took_ms:.0f}", f"{peak:.1f}", f"{row_bytes / 1e6:.1f}")
        del batch, rows
    Console().print(table)


def _arrays(batch: RowBatch) -> list[mx.array]:
    return [array for cache in batch.caches for rows in cache.members.values() for array in rows.arrays]


def _row(name: int, length: int) -> Row:
    caches = [KVCache() for _ in range(NUM_LAYERS)]
    for cache in caches:
        part = mx.ones((1, KV_HEADS, length, DIM))
        cache.update_and_fetch(part, part)
    mx.eval([cache.state for cache in caches])
    new = NewRow(
        id=name,
        prompt=name,
        ordinal=0,
        prompt_ids=(0,) * (length + 1),
        max_num_tokens=length + 100,
        sampling=SamplingParams(),
        key=0,
    )
    return Row.of(new, caches)


def _measured(lengths: Sequence[int], max_groups: int) -> tuple[int, float, int]:
    """Return (bytes, milliseconds of a step, groups)."""
    batch = RowBatch([KVCache() for _ in range(NUM_LAYERS)], SIZES, max_groups)
    batch.set_rows([_row(place, length) for place, length in enumerate(lengths)])
    times = []
    for _ in range(NUM_STEPS):
        began = time.perf_counter()
        _step(batch)
        times.append(1e3 * (time.perf_counter() - began))
    return batch.nbytes, min(times), batch.num_groups


def _step(batch: RowBatch) -> None:
    """Compute the attention of every layer, for a token of each row."""
    rows = batch.rows
    batch.prepare()
    part = mx.ones((len(rows), KV_HEADS, 1, DIM))
    hidden = mx.ones((len(rows), HEADS, 1, DIM))
    mask = batch.caches[0].make_mask(1)
    for cache in batch.caches:
        keys, values = cache.update_and_fetch(part, part)
        hidden = attention.attend(hidden, keys, values, None, DIM**-0.5, mask)
    batch.advance()
    for row in rows:
        row.num_started_tokens += 1
    mx.eval(hidden)


def _turnover(spare_bytes: int) -> tuple[float, int, float]:
    """Return (milliseconds, peak bytes over held memory, bytes of a row), of the best of several."""
    batch = RowBatch([KVCache() for _ in range(NUM_LAYERS)], SIZES)
    batch.spare_bytes = spare_bytes
    rows = [_row(place, 2000) for place in range(16)]
    batch.set_rows(rows)
    _step(batch)
    times, peaks = [], []
    for place in range(3):
        new = _row(100 + place, 2000)
        mx.clear_cache()
        held = mx.get_active_memory()
        mx.reset_peak_memory()
        began = time.perf_counter()
        batch.set_rows(rows := rows[1:])
        _step(batch)
        batch.set_rows(rows := [*rows, new])
        _step(batch)
        times.append(1e3 * (time.perf_counter() - began))
        peaks.append(mx.get_peak_memory() - held)
    return min(times), min(peaks), batch.nbytes / 16
