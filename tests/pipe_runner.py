"""A runner in a child process, behind a pipe: everything passed is pickled, so it can only be data.

Every call is a message to the child and its answer. Masks are requested back over the same pipe.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from mlx_backend.api.interface import EngineConfig, LoadProgress, ModelInfo
from mlx_backend.core.blocks import BlockStore
from mlx_backend.core.step import (
    BlockId,
    BlockRef,
    Chunk,
    Draft,
    DraftRequest,
    MaskBits,
    Newest,
    PromptId,
    PromptResult,
    ReadMasks,
    SequenceId,
    Span,
    StepPlan,
    StepResult,
)
from mlx_backend.factory import create_runner
from mlx_backend.planning.admission import Budget


class PipeRunner:
    """Implements `runners.base.Runner` with a runner of the same configuration in a child process."""

    def __init__(self, config: EngineConfig) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._child = context.Process(target=_serve, args=(theirs, config), daemon=True)
        self._child.start()
        theirs.close()
        self.budget: Budget | None = None
        self.blocks: BlockStore | None = None

    def load(self, report: Callable[[LoadProgress], None]) -> ModelInfo:
        info: ModelInfo = self._call("load", answer=report)
        self.budget = self._call("budget")
        facts = self._call("store facts")
        self.blocks = None if facts is None else PipeStore(self._call, *facts)
        return info

    def start(self, plan: StepPlan, read_masks: ReadMasks) -> None:
        self._call("start", plan, answer=read_masks)

    def collect(self) -> StepResult:
        result: StepResult = self._call("collect")
        return result

    def prefill(self, chunk: Chunk) -> PromptResult:
        result: PromptResult = self._call("prefill", chunk)
        return result

    def draft(self, wanted: tuple[DraftRequest, ...]) -> tuple[Draft, ...]:
        drafts: tuple[Draft, ...] = self._call("draft", wanted)
        return drafts

    def idle(self) -> None:
        self._call("idle")

    def kv_bytes(self) -> int:
        return int(self._call("kv_bytes"))

    def device_bytes(self) -> tuple[int, int]:
        now, peak = self._call("device_bytes")
        return now, peak

    def interrupt(self) -> None:
        """Do nothing: `close` ends the child."""

    def close(self) -> None:
        self._pipe.send(None)
        self._child.join(60)
        self._child.kill()
        self._pipe.close()

    def _call(self, name: str, *given: Any, answer: Callable[[Any], Any] | None = None) -> Any:
        self._pipe.send((name, given))
        while True:
            kind, value = self._pipe.recv()
            if kind == "asks":
                assert answer is not None
                self._pipe.send(answer(value))
            elif kind == "raises":
                raise value
            else:
                return value


class PipeStore:
    """Implements `core.blocks.BlockStore` over the same pipe."""

    def __init__(
        self,
        call: Callable[..., Any],
        kinds: tuple[tuple[str, str], ...],
        cuts: bool,
        bytes_per_token: int,
        state_bytes: int,
    ) -> None:
        self._call, self.kinds, self.cuts = call, kinds, cuts
        self.bytes_per_token, self.state_bytes = bytes_per_token, state_bytes

    def take(self, source: PromptId | SequenceId, spans: Sequence[Span]) -> tuple[BlockRef, ...]:
        refs: tuple[BlockRef, ...] = self._call("take", source, tuple(spans))
        return refs

    def free(self, block: BlockId) -> None:
        self._call("free", block)

    def dump(self, block: BlockId) -> tuple[Any, list[memoryview]]:
        arrays, buffers = self._call("dump", block)
        return arrays, [memoryview(buffer) for buffer in buffers]

    def load(self, arrays: Any, data: memoryview) -> BlockRef:
        ref: BlockRef = self._call("load block", arrays, bytes(data))
        return ref


def _serve(pipe: Connection, config: EngineConfig) -> None:
    """Answer calls until there are no more."""
    runner = create_runner(config)

    def ask(value: Any) -> Any:
        pipe.send(("asks", value))
        return pipe.recv()

    def masks(newest: Newest) -> MaskBits:
        bits: MaskBits = ask(newest)
        return bits

    def store() -> Any:
        return runner.blocks

    def facts() -> Any:
        held = store()
        return held and (held.kinds, held.cuts, held.bytes_per_token, held.state_bytes)

    calls: dict[str, Callable[..., Any]] = {
        "load": lambda: runner.load(ask),
        "budget": lambda: runner.budget,
        "store facts": facts,
        "start": lambda plan: runner.start(plan, masks),
        "take": lambda source, spans: store().take(source, spans),
        "free": lambda block: store().free(block),
        "dump": lambda block: _as_bytes(*store().dump(block)),
        "load block": lambda arrays, data: store().load(arrays, memoryview(data)),
    }
    while (message := pipe.recv()) is not None:
        name, given = message
        try:
            call = calls[name] if name in calls else getattr(runner, name)
            pipe.send(("gives", call(*given)))
        except Exception as error:  # noqa: BLE001 - every exception is passed to the parent
            error.__cause__ = None
            pipe.send(("raises", error))
    runner.close()


def _as_bytes(arrays: Any, buffers: list[memoryview]) -> tuple[Any, list[bytes]]:
    return arrays, [bytes(buffer) for buffer in buffers]
