"""The division of a device's memory for one model, before a weight is read; and the context that fits."""

from __future__ import annotations

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import EngineConfig, MemoryReport
from mlx_backend.model.checkpoint import Checkpoint
from mlx_backend.planning.admission import Budget
from mlx_backend.planning.limits import Limits, decide_limits, for_process, report_memory
from mlx_backend.planning.memory import ModelShape
from mlx_backend.runners import device
from mlx_backend.runners.wired import WiredWeights


def divide_memory(
    config: EngineConfig, shape: ModelShape, name: str, wired: WiredWeights
) -> tuple[MemoryReport, Limits] | tuple[None, None]:
    """Divide the memory, and decide whether weights are wired. None if no limit is known."""
    given, facts, share = config.memory, device.read_facts(), config.share
    limit, basis = given.limit_bytes, "memory.limit_gb"
    if share is not None:
        limit, basis = share.share_bytes, "its share beside the other models"
    elif limit is None:
        limit, basis = device.memory_limit(facts)
    if limit is None:
        return None, None
    if config.ranks_here > 1:
        limit, basis = limit // config.ranks_here, f"{basis}, divided among {config.ranks_here} ranks"
    weights = shape.weights_bytes
    limits = decide_limits(given.cache_bytes, limit_bytes=limit, weights_bytes=weights)
    if share is not None:
        limits = for_process(limits, share.process_bytes)
    wiring = wired.decide(given.wired, facts, weights, name, has_several_models=share is not None)
    memory = report_memory(given, facts, limits, wiring, limit_bytes=limit, basis=basis, weights_bytes=weights)
    return memory, limits


def read_context_limit(checkpoint: Checkpoint, config: EngineConfig) -> int:
    """Return the tokens of context that the model and the configuration allow. Raises ModelLoadError."""
    own, configured = checkpoint.context_length, config.context.limit
    if configured is not None and configured > own:
        raise ModelLoadError(f"context.limit {configured} is more than the model's own {own}; lower it")
    return configured or own


def fitting(limit: int, budget: Budget | None) -> int:
    """Return the tokens of context that fit into memory, up to `limit`."""
    return limit if budget is None else min(limit, budget.largest_alone(1))


def too_large(memory: MemoryReport, checkpoint: Checkpoint) -> ModelLoadError:
    """Return the error for a model that does not fit."""
    raising = "" if memory.raise_command is None else f"; more is there for the GPU after: {memory.raise_command}"
    return ModelLoadError(
        f"{checkpoint.path.name} does not fit: its weights take {memory.weights_bytes / 1e9:.2f} GB, of "
        f"{memory.limit_bytes / 1e9:.2f} GB ({memory.limit_basis}) less {memory.reserve_bytes / 1e9:.2f} GB of "
        f"reserve, and what is left does not hold one token's computation{raising}; see: pippin plan {checkpoint.path}"
    )
