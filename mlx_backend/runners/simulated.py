"""The simulated runner: the mock at the pace, and with the memory, that the planner predicts for a machine and a model.

Text is generated as by the mock, a token for each byte. One thing is computed at a time, as on a device: a chunk of a
prompt waits for the decode step before it. Prompts in the prefix cache take no time. No MLX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import NO_SPECULATION, EngineConfig, LoadProgress, MemoryReport, ModelInfo
from mlx_backend.core.step import Chunk
from mlx_backend.kv_cache.allocation import allocated
from mlx_backend.kv_cache.grouping import divide, most_bytes
from mlx_backend.kv_cache.plan import CachePlan, CacheShape, RowSizes, max_groups, plan_caches, report
from mlx_backend.planning.admission import Budget
from mlx_backend.planning.limits import DeviceFacts, decide_limits, report_memory
from mlx_backend.planning.machines import Machine, UnknownMachine, find_machine
from mlx_backend.planning.memory import ModelShape, kv_bytes
from mlx_backend.planning.planner import decode_speed, plan_wiring, prefill_speed, weights_read_s
from mlx_backend.prefix_cache.store_mock import MockStore
from mlx_backend.runners.base import limited_by
from mlx_backend.runners.mock import MockRow, MockRunner

_LOAD_SLICES = 100


class PlannedSpeed:
    """Seconds that a model on a machine should take; `speed` times as fast."""

    def __init__(self, shape: ModelShape, plans: Sequence[CachePlan], machine: Machine, speed: float = 1.0) -> None:
        self._shape, self._plans, self._machine, self._speed = shape, tuple(plans), machine, speed
        self._decode_s = cache(self._estimate_decode_s)

    def chunk_s(self, start: int, num_tokens: int) -> float:
        """Return the seconds of prompt tokens from `start` on: those of a prompt with them, less those without.

        At least the time to read the weights that they are computed with.
        """
        computing_s = self._prompt_s(start + num_tokens) - self._prompt_s(start)
        return max(computing_s, weights_read_s(self._shape, self._machine, num_tokens) / self._speed)

    def step_s(self, num_rows: int, longest: int, num_drafts: int = 0) -> float:
        """Return the seconds of a decode step of `num_rows`; attention reads each row as if as long as the longest.

        `num_drafts`: tokens of all rows that it verifies beside their newest.
        """
        return self._decode_s(num_rows, allocated(max(longest, 1)), num_drafts)

    def _prompt_s(self, num_tokens: int) -> float:
        estimate = prefill_speed(self._shape, self._machine, num_tokens)
        return num_tokens / estimate.value / self._speed if estimate else 0.0

    def _estimate_decode_s(self, num_rows: int, context: int, num_drafts: int) -> float:
        estimate = decode_speed(self._shape, self._plans, self._machine, context, num_rows, num_drafts=num_drafts)
        return 1.0 / estimate.value / self._speed if estimate else 0.0


class SimulatedRunner(MockRunner):
    """Implements `runners.base.Runner` without the device that it simulates."""

    def __init__(self, config: EngineConfig, shape: ModelShape, caches: Sequence[CacheShape]) -> None:
        """Build the runner. `shape` and `caches`: the model's, as read_shape returns them. Raises ModelLoadError."""
        super().__init__(config)
        self._shape = shape
        self._machine = _find(config.simulate.machine or "")
        self._plans = plan_caches(caches, config.kv_cache, config.speculation.max_drafts)
        self._row_bytes = RowSizes(self._plans)
        self._peak_bytes = 0
        self.pace = PlannedSpeed(shape, self._plans, self._machine, config.simulate.speed)
        self.blocks = MockStore(sum(plan.bytes_per_token for plan in self._plans), self._tokens_of)

    def load(self, report_progress: Callable[[LoadProgress], None]) -> ModelInfo:
        limit = self._own_limit()
        memory = self._divide_memory()
        self.budget = self._build_budget(memory)
        fitting = min(limit, self.budget.largest_alone(1))
        if fitting == 0:
            raise ModelLoadError(_too_large(memory, self._machine))
        total = self._shape.weights_bytes
        for done in range(_LOAD_SLICES + 1):
            report_progress(LoadProgress(done_bytes=total * done // _LOAD_SLICES, total_bytes=total))
            self._wait(self.load_s / (_LOAD_SLICES + 1))
        return ModelInfo(
            context_limit=fitting,
            context_limited_by=limited_by(self._config.context, limit, fitting),
            vocab_size=self._vocab_size,
            num_parameters=self._shape.num_parameters,
            weights_bytes=total,
            memory=memory,
            kv_caches=report(self._plans, self._config.kv_cache),
            max_drafts=self._config.speculation.max_drafts,
            no_drafts_reason="" if self._config.speculation.max_drafts else NO_SPECULATION,
            no_embedding_reason="it is simulated",
            adapters=self.adapters.load(self._config.adapters),
        )

    @property
    def load_s(self) -> float:
        """Return the seconds that loading takes."""
        disk = self._config.simulate.disk_gb_s
        took_s = self._config.mock.load_s if disk is None else self._shape.weights_bytes / (disk * 1e9)
        return took_s / self._config.simulate.speed

    def _own_limit(self) -> int:
        own, configured = self._shape.context_length, self._config.context.limit
        if configured is not None and configured > own:
            raise ModelLoadError(f"context.limit {configured} is more than the model's own {own}; lower it")
        return configured or own

    def _divide_memory(self) -> MemoryReport:
        """Divide memory as the MLX runner does on that machine."""
        given, machine, weights_bytes = self._config.memory, self._machine, self._shape.weights_bytes
        facts = DeviceFacts(
            name=machine.name, memory_bytes=machine.memory_bytes, recommended_bytes=machine.gpu_limit_bytes
        )
        limit_bytes = given.limit_bytes or machine.gpu_limit_bytes
        limits = decide_limits(given.cache_bytes, limit_bytes=limit_bytes, weights_bytes=weights_bytes)
        wiring = plan_wiring(machine, weights_bytes, given.wired, limit_bytes)
        basis = "memory.limit_gb" if given.limit_bytes else f"the GPU's limit, {machine.gpu_limit_basis}"
        basis = f"simulated {machine.name}; {basis}"
        return report_memory(
            given, facts, limits, wiring, limit_bytes=limit_bytes, basis=basis, weights_bytes=weights_bytes
        )

    def _build_budget(self, memory: MemoryReport) -> Budget:
        max_chunk = self._config.scheduler.max_chunk_tokens
        drafts = self._config.speculation.max_drafts
        return Budget(self._shape, self._plans, memory.free_bytes, max_chunk=max_chunk, max_drafts=drafts)

    def _compute(self, chunk: Chunk) -> None:
        self._free_at = max(self._free_at, self._now()) + self.pace.chunk_s(chunk.start, chunk.num_tokens)
        self._wait(max(self._free_at - self._now(), 0.0))

    def _step_s(self, rows: Sequence[MockRow], num_drafts: int = 0) -> float:
        lengths = [row.num_computed_tokens for row in rows]
        groups = divide(lengths, self._row_bytes, max_groups(self._plans))
        longest = {number: max(n for n, g in zip(lengths, groups, strict=True) if g == number) for number in groups}
        padded = sum(longest[number] for number in groups)
        return self.pace.step_s(len(rows), -(-padded // len(rows)), num_drafts)

    def kv_bytes(self) -> int:
        lengths = [row.num_computed_tokens + 1 for row in self._rows.values()]
        rows = most_bytes(lengths, self._row_bytes, max_groups(self._plans))
        single = (kv_bytes(self._plans, len(computed)) for computed in self._prompts.values())
        held = rows + sum(single)
        self._peak_bytes = max(self._peak_bytes, self._shape.weights_bytes + held)
        self._held_bytes = held
        return held

    _held_bytes = 0

    def device_bytes(self) -> tuple[int, int]:
        return self._shape.weights_bytes + self._held_bytes, self._peak_bytes


def _find(machine_id: str) -> Machine:
    try:
        return find_machine(machine_id)
    except UnknownMachine as error:
        raise ModelLoadError(f"simulate.machine: {error} (pippin plan --machines)") from None


def _too_large(memory: MemoryReport, machine: Machine) -> str:
    return (
        f"it does not fit {machine.name}: its weights take {memory.weights_bytes / 1e9:.1f} GB of the "
        f"{memory.limit_bytes / 1e9:.1f} GB there; see: pippin plan MODEL --machine {machine.id}"
    )
