"""Runner: the narrow door between the engine and a device. Everything here is called on the device thread.

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
    """Return what makes the context limit `fitting`, where the model and the configuration together allow `limit`."""
    if fitting < limit:
        return "memory"
    return "model" if config.limit is None else "configuration"


_OUT_OF_MEMORY = (
    "Insufficient Memory",  # Metal, of a command buffer
    "[metal::malloc]",  # Metal: a buffer larger than any may be, or one more than there may be
    "Unable to allocate",  # MLX's allocators
    "out of memory",  # CUDA
)
"""Texts by which MLX's errors say so (backend/{metal,cuda,no_gpu}/allocator.cpp, metal/device.cpp): all are
RuntimeErrors. Others name memory, too, such as "illegal memory access", and are faults of another kind."""


def failed(what: str, error: BaseException) -> SequenceFailed:
    """Return the error of a failed computation for the sequences that it was for."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, MemoryError) or any(each in text for each in _OUT_OF_MEMORY):
        return OutOfMemory(f"the device ran out of memory in a {what}: {text}")
    return SequenceFailed(f"a {what} failed: {text}")


class Runner(Protocol):
    """Computes. Owns its rows, its prompts' KV caches and its blocks, all by id.

    Steps are collected in the order in which they were started. Where a SequenceFailed names no ids, all that the
    computation was for are lost. Where memory runs out in a decode step, or a step cannot be collected, every row is
    lost, and is started again from a prompt; prompts and blocks stay.
    """

    @property
    def budget(self) -> Budget | None:
        """The memory that live sequences may need together, once the model is loaded; None: no bound."""

    @property
    def blocks(self) -> BlockStore | None:
        """Where the prefix cache's blocks are, once the model is loaded; None where its caches cannot be kept."""

    def load(self, report: Callable[[LoadProgress], None]) -> ModelInfo:
        """Load the model. Raises ModelLoadError."""

    def start(self, plan: StepPlan, read_masks: ReadMasks) -> None:
        """Let rows leave and join, and start to decode one step of the plan's rows, without waiting for it.

        The plan's chunks are computed by `prefill`. `read_masks` is asked at most once, for the rows of `plan.masked`.
        Raises SequenceFailed; then no step was started.
        """

    def collect(self) -> StepResult:
        """Wait for the oldest step that was started, and read its tokens. Raises SequenceFailed."""

    def prefill(self, chunk: Chunk) -> PromptResult:
        """Compute or restore a chunk; returns when the device is done. Raises SequenceFailed: the prompt is lost."""

    def draft(self, wanted: tuple[DraftRequest, ...]) -> tuple[Draft, ...]:
        """Have the draft model prefill tokens of rows, and draft; return when the device is done.

        A Draft for each row, empty where none was wanted; none for a row that is unknown, or of which the draft model
        does not hold what the request says: it holds nothing of it any more. Raises SequenceFailed: the draft model
        holds nothing at all, and no row is lost.
        """

    def idle(self) -> None:
        """Let go of every row, of steps that are not collected, and of the device's spare buffers. Prompts stay."""

    def kv_bytes(self) -> int:
        """Bytes of the KV caches of the batch, and of prompts that are being computed."""

    def device_bytes(self) -> tuple[int, int]:
        """(allocated now, the most so far) by the device, weights among them."""

    def interrupt(self) -> None:
        """Called from any thread when the engine closes: cut short what only waits."""

    def close(self) -> None:
        """Let go of the model."""
