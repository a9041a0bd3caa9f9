"""Runner: the narrow interface between the engine and a device. Everything here is called on the device thread.

Only data crosses it: plans and results (core/step.py), errors that name ids, bytes. A runner can be in another process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from mlx_backend.api.errors import OutOfMemory, SequenceFailed
from mlx_backend.api.interface import ContextConfig, LoadProgress, ModelInfo
from mlx_backend.core.blocks import BlockStore
from mlx_backend.core.step import Chunk, Draft, DraftRequest, PromptResult, ReadMasks, StepPlan, StepResult
from mlx_backend.planning.admission import Budget


def limited_by(config: ContextConfig, limit: int, fitting: int) -> Literal["model", "configuration", "memory"]:
    """Return what limits the context to `fitting`, if the model and the configuration together allow `limit`."""
    if fitting < limit:
        return "memory"
    return "model" if config.limit is None else "configuration"


_OUT_OF_MEMORY = (
    "Insufficient Memory",  # Metal, of a command buffer
    "[metal::malloc]",  # Metal: a buffer above the largest size, or one more than the largest number
    "Unable to allocate",  # MLX's allocators
    "out of memory",  # CUDA
)
"""Texts of MLX's out-of-memory errors (backend/{metal,cuda,no_gpu}/allocator.cpp, metal/device.cpp): all are
RuntimeErrors. Other errors name memory, too, such as "illegal memory access", and are faults of another kind."""


def failed(what: str, error: BaseException) -> SequenceFailed:
    """Return the error of a failed computation for the sequences that it was for."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, MemoryError) or any(each in text for each in _OUT_OF_MEMORY):
        return OutOfMemory(f"the device ran out of memory in a {what}: {text}")
    return SequenceFailed(f"a {what} failed: {text}")


class Runner(Protocol):
    """Computes plans. Owns its rows, its prompts' KV caches and its blocks, all by id.

    Steps are collected in the order in which they were started. If a SequenceFailed names no ids, everything that the
    computation was for is lost. If memory runs out in a decode step, or a step cannot be collected, every row is lost,
    and is started again from a prompt; prompts and blocks stay.
    """

    @property
    def budget(self) -> Budget | None:
        """Memory that live sequences may need together, once the model is loaded; None: no bound."""

    @property
    def blocks(self) -> BlockStore | None:
        """Store of the prefix cache's blocks, once the model is loaded; None if its caches cannot be kept."""

    def load(self, report: Callable[[LoadProgress], None]) -> ModelInfo:
        """Load the model. Raises ModelLoadError."""

    def start(self, plan: StepPlan, read_masks: ReadMasks) -> None:
        """Let rows leave and join, and start to decode one step of the plan's rows, without waiting for it.

        The plan's chunks are computed by `prefill`. `read_masks` is called at most once, for the rows of `plan.masked`.
        Raises SequenceFailed; then no step was started.
        """

    def collect(self) -> StepResult:
        """Wait for the oldest step that was started, and read its tokens. Raises SequenceFailed."""

    def prefill(self, chunk: Chunk) -> PromptResult:
        """Compute or restore a chunk; returns when the device is done. Raises SequenceFailed: the prompt is lost."""

    def draft(self, wanted: tuple[DraftRequest, ...]) -> tuple[Draft, ...]:
        """Have the draft model prefill tokens of rows, and draft; return when the device is done.

        Returns a Draft for each row, empty if none was requested. There is none for an unknown row, nor for a row of
        which the draft model does not hold what the request states: it then holds nothing of that row. Raises
        SequenceFailed: the draft model holds nothing at all, and no row is lost.
        """

    def idle(self) -> None:
        """Release every row, steps that are not collected, and the device's spare buffers. Prompts stay."""

    def kv_bytes(self) -> int:
        """Return the bytes of the KV caches of the batch, and of prompts that are being computed."""

    def device_bytes(self) -> tuple[int, int]:
        """Return the bytes on the device, weights among them: (allocated now, the most so far)."""

    def interrupt(self) -> None:
        """Cut short whatever only waits. Called from any thread when the engine closes."""

    def close(self) -> None:
        """Release the model."""
