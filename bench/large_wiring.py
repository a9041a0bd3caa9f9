"""Buffers that enter and leave MLX's residency sets while a model serves: the traffic that makes macOS panic.

A model of MLX's allocator and of its sets, in numbers, written from mlx/backend/metal/allocator.cpp and resident.cpp at
commit 846d176: no Mac is needed, and none has confirmed it. `before` sets the limit before the weights are read, to all
that macOS lets the GPU use; `active` sets it after loading, to what MLX counts as active; `now` is `planning.wiring`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from mlx_backend.planning.wiring import filler_sizes, slack_bytes, wired_limit

PAGE = 16_384
_HEAP_BYTES = 1 << 20
_SMALL_BYTES = 256
_LIMIT_BYTES = 412_316_860_416
_NUM_STREAMS = 4
_NUM_STEPS = 40


@dataclass
class ResidencySets:
    """`insert`, `erase` and `resize` as in resident.cpp; `order` shuffles, as a hash table may have any order."""

    order: random.Random = field(default_factory=lambda: random.Random(0))
    capacity: int = 0
    wired: int = 0
    num_in: int = 0
    num_out: int = 0
    tracked: dict[int, int] = field(default_factory=dict)
    inside: set[int] = field(default_factory=set)

    def insert(self, buffer: int, size: int) -> None:
        self.tracked[buffer] = size
        if self.wired + size <= self.capacity:
            self._add(buffer)

    def erase(self, buffer: int) -> None:
        if buffer in self.inside:
            self._remove(buffer)
        del self.tracked[buffer]

    def resize(self, capacity: int) -> None:
        self.capacity = capacity
        order = list(self.tracked)
        self.order.shuffle(order)
        for buffer in order:
            if self.wired > capacity and buffer in self.inside:
                self._remove(buffer)
        for buffer in order:
            if buffer not in self.inside and self.wired + self.tracked[buffer] <= capacity:
                self._add(buffer)

    def _add(self, buffer: int) -> None:
        self.inside.add(buffer)
        self.wired += self.tracked[buffer]
        self.num_in += 1

    def _remove(self, buffer: int) -> None:
        self.inside.discard(buffer)
        self.wired -= self.tracked[buffer]
        self.num_out += 1


class Allocator:
    """MLX's allocator: sizes in whole pages, freed buffers kept for reuse, the smallest in a heap of one allocation."""

    def __init__(self, sets: ResidencySets) -> None:
        self.sets, self.active, self._next = sets, 0, 1
        self._sizes: dict[int, int] = {}
        self._cached: list[int] = []
        sets.insert(0, _HEAP_BYTES)

    def malloc(self, size: int) -> int:
        size = size if size <= PAGE else -(-size // PAGE) * PAGE
        for buffer in sorted(self._cached, key=self._sizes.__getitem__):
            if size <= self._sizes[buffer] < min(2 * size, size + 2 * PAGE):
                self._cached.remove(buffer)
                break
        else:
            buffer, self._next = self._next, self._next + 1
            self._sizes[buffer] = size
            if size >= _SMALL_BYTES:
                self.sets.insert(buffer, -(-size // PAGE) * PAGE)
        self.active += self._sizes[buffer]
        return buffer

    def free(self, buffer: int) -> None:
        self.active -= self._sizes[buffer]
        self._cached.append(buffer)

    def clear_cache(self) -> None:
        for buffer in self._cached:
            if self._sizes.pop(buffer) >= _SMALL_BYTES:
                self.sets.erase(buffer)
        self._cached.clear()


Wire = Callable[[Allocator, int], None]
"""Takes the allocator after loading, and the number of live arrays."""


def wire_active(allocator: Allocator, num_arrays: int) -> None:
    """Wire exactly what MLX counts."""
    allocator.clear_cache()
    allocator.sets.resize(allocator.active)


def wire_now(allocator: Allocator, num_arrays: int) -> None:
    """Wire as `runners.device.wire` does."""
    allocator.clear_cache()
    allocator.sets.resize(wired_limit(allocator.active, num_arrays, PAGE, _LIMIT_BYTES))
    for size in filler_sizes(slack_bytes(num_arrays, PAGE), PAGE):
        allocator.malloc(size)


def serve(allocator: Allocator, kv_bytes: Sequence[int], num_steps: int) -> None:
    """Grow each stream's KV buffers of all layers by copies in every step, and free the old ones."""
    held: list[list[int]] = [[] for _ in range(_NUM_STREAMS)]
    for step in range(num_steps):
        for buffers in held:
            grown = [allocator.malloc(size * (1 + step % 4)) for size in kv_bytes]
            for buffer in buffers:
                allocator.free(buffer)
            buffers[:] = grown
        allocator.clear_cache()


def r1_arrays() -> list[int]:
    """Return the bytes of the arrays of a 4-bit DeepSeek R1, about: experts, scales, biases, attention, norms."""
    expert = 256 * 2048 * 7168 // 2
    attention = [7168 * 1536 // 2, 1536 * 24_576 // 2, 7168 * 576 // 2, 16_384 * 7168 // 2]
    layer = [expert, expert // 16, expert // 16] * 3 + attention + [14_336, 3_072]
    return layer * 58 + [129_280 * 7168 // 2] * 2


def measure(name: str, wire: Wire | None) -> tuple[str, ...]:
    """Return a row of the table."""
    sets = ResidencySets()
    allocator, arrays = Allocator(sets), r1_arrays()
    if wire is None:
        sets.resize(_LIMIT_BYTES)
    weights = [allocator.malloc(size) for size in arrays]
    if wire is not None:
        wire(allocator, len(arrays))
    outside = sum(sets.tracked[buffer] for buffer in weights if buffer not in sets.inside)
    room = sets.capacity - sets.wired
    before = sets.num_in, sets.num_out
    serve(allocator, [256 * 576 * 2] * 61, _NUM_STEPS)
    moved = sets.num_in - before[0], sets.num_out - before[1]
    sizes = (sets.wired, outside, room)
    return (name, *(f"{size / 1e9:,.3f}" for size in sizes), *(f"{each:,}" for each in moved))


def print_wiring() -> None:
    """Print the table: 40 growths of 4 streams' KV caches in 61 layers."""
    table = Table("limit set", "wired, GB", "weights outside, GB", "room below, GB", "buffers in", "buffers out")
    ways: tuple[tuple[str, Wire | None], ...] = (("before", None), ("active", wire_active), ("now", wire_now))
    for name, wire in ways:
        table.add_row(*measure(name, wire))
    Console().print(table)
