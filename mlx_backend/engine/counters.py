"""Counters and measurements of the device thread, and the snapshot that other threads read. No MLX."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from mlx_backend.api.interface import PRIORITIES, ClassStats, EngineStats, PrefixCacheStats, SpeculationStats
from mlx_backend.engine.scheduler import Scheduler
from mlx_backend.prefix_cache.cache import PrefixCache
from mlx_backend.prefix_cache.no_cache import NoPrefixCache
from mlx_backend.runners.base import Runner

_LATELY_S = 60.0
_LEAST_S = 0.1
_RETRY_AFTER_S = 5
"""Returned if nothing has ended recently."""


@dataclass(slots=True)
class Counters:
    """Counters written by the device thread, one field at a time; read by any thread."""

    num_steps: int = 0
    num_stalls: int = 0
    stepped_at: float | None = None
    """Time at which the last decode step was collected, while rows decode without a break."""
    num_finished: int = 0
    num_aborted: int = 0
    num_failed: int = 0
    ended_at: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    """Times at which the last sequences ended, on the monotonic clock."""
    kv_bytes: int = 0
    planned_bytes: int = 0
    device_bytes: tuple[int, int] = (0, 0)
    progress_at: float = 0.0
    """Time at which the last step or chunk was done, on the monotonic clock."""
    prefix_cache: PrefixCacheStats = field(default_factory=PrefixCacheStats)
    speculation: SpeculationStats = field(default_factory=SpeculationStats)

    def ended(self, how: str, now: float) -> None:
        """Count a sequence that has `finished`, was `aborted` or has `failed`."""
        self.num_finished += how == "finished"
        self.num_aborted += how == "aborted"
        self.num_failed += how == "failed"
        self.ended_at.append(now)

    def retry_after_s(self, num_waiting: int, now: float) -> int:
        """Estimate the seconds until a tenth of the waiting requests get a place, by recent ends; 1 to 60."""
        lately = [at for at in self.ended_at.copy() if now - at < _LATELY_S]
        if not lately:
            return _RETRY_AFTER_S
        pace = len(lately) / max(now - lately[0], _LEAST_S)
        return max(1, min(60, math.ceil(num_waiting / 10 / pace)))

    def stepped(self, now: float, max_stall_s: float) -> None:
        """Note that a decode step was collected: running sequences have waited since the one before."""
        self.num_stalls += self.stepped_at is not None and now - self.stepped_at > max_stall_s
        self.stepped_at = now

    def observe(self, runner: Runner, scheduler: Scheduler, prefixes: PrefixCache | NoPrefixCache) -> None:
        """Note what is held now."""
        self.kv_bytes = runner.kv_bytes()
        self.planned_bytes = scheduler.planned_bytes
        self.device_bytes = runner.device_bytes()
        self.prefix_cache = prefixes.stats()

    def snapshot(self, scheduler: Scheduler | None, num_arrived: int) -> EngineStats:
        """Return the counters now. `scheduler` None: before the model has loaded. `num_arrived`: not yet in it."""
        return EngineStats(
            num_waiting=num_arrived + (len(scheduler.waiting) if scheduler else 0),
            num_prefilling=len(scheduler.prefilling) + len(scheduler.ready) if scheduler else 0,
            num_running=len(scheduler.running) if scheduler else 0,
            num_steps=self.num_steps,
            num_stalls=self.num_stalls,
            stall_s=scheduler.stall_s if scheduler else 0.0,
            num_finished=self.num_finished,
            num_aborted=self.num_aborted,
            num_failed=self.num_failed,
            num_preemptions=scheduler.num_preemptions if scheduler else 0,
            num_recomputed_tokens=scheduler.num_recomputed_tokens if scheduler else 0,
            kv_bytes=self.kv_bytes,
            planned_bytes=self.planned_bytes,
            active_bytes=self.device_bytes[0],
            peak_bytes=self.device_bytes[1],
            prefix_cache=self.prefix_cache,
            speculation=self.speculation,
            classes=_classes(scheduler) if scheduler else EngineStats().classes,
        )


def _classes(scheduler: Scheduler) -> tuple[ClassStats, ...]:
    computed = [group.request.priority for group in list(scheduler.prefilling)]
    computed += [sequence.request.priority for sequence in list(scheduler.ready)]
    decoding = [sequence.request.priority for sequence in list(scheduler.running)]
    priorities = scheduler.priorities
    return tuple(
        ClassStats(
            priority=priority,
            num_waiting=len(scheduler.waiting.of(priority)),
            num_prefilling=computed.count(priority),
            num_running=decoding.count(priority),
            num_pauses=priorities.num_pauses[priority],
            num_output_tokens=priorities.num_output_tokens[priority],
        )
        for priority in PRIORITIES
    )
