"""Record of a run: every runner call and its result, a line of JSON each; and its replay.

`pippin serve MODEL --record FILE` writes one; `python -m mlx_backend.replay FILE` replays it.

It contains no text, but token ids, which a tokenizer turns into text. Written by the device thread. No MLX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from mlx_backend.api.errors import ModelLoadError, SequenceFailed
from mlx_backend.api.interface import (
    EngineConfig,
    KVCacheConfig,
    LoadProgress,
    MockConfig,
    ModelInfo,
    SpeculationConfig,
)
from mlx_backend.core.as_json import decode, encode
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
from mlx_backend.planning.admission import Budget
from mlx_backend.runners.base import Runner

logger = logging.getLogger("pippin.engine")


class RecordingRunner:
    """A runner that forwards each call to `runner` and records it. Implements `runners.base.Runner`."""

    def __init__(self, runner: Runner, file: Path, config: EngineConfig) -> None:
        """Record `runner`. `config`: the one it was built with; what a replay needs of it is written first."""
        self._runner, self._path = runner, file
        self._model = {
            "model_path": config.model_path,
            "backend": config.backend,
            "kv_cache": dataclasses.asdict(config.kv_cache),
            "speculation": dataclasses.asdict(config.speculation),
            "mock": {
                "context": config.mock.context,
                "tokenizer": config.mock.tokenizer,
                "draft_share": config.mock.draft_share,
            },
        }
        self._file: TextIO | None = None
        self._blocks: _RecordingStore | None = None

    @property
    def budget(self) -> Budget | None:
        return self._runner.budget

    @property
    def blocks(self) -> BlockStore | None:
        return self._blocks

    def load(self, report: Callable[[LoadProgress], None]) -> ModelInfo:
        """Load the model. Raises ModelLoadError, also if the file cannot be written."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            self._file = os.fdopen(descriptor, "w", encoding="utf-8")
        except OSError as error:
            raise ModelLoadError(f"debug.record: {self._path} cannot be written ({error.strerror})") from error
        self._write("load", self._model, None)
        info = self._runner.load(report)
        store = self._runner.blocks
        self._blocks = None if store is None else _RecordingStore(store, self._write)
        return info

    def start(self, plan: StepPlan, read_masks: ReadMasks) -> None:
        masks: list[tuple[Newest, MaskBits]] = []

        def noting(newest: Newest) -> MaskBits:
            bits = read_masks(newest)
            masks.append((newest, bits))
            return bits

        with_masks = {"plan": plan, "masks": masks}
        self._call("start", with_masks, lambda: self._runner.start(plan, noting))

    def collect(self) -> StepResult:
        result: StepResult = self._call("collect", {}, self._runner.collect)
        return result

    def prefill(self, chunk: Chunk) -> PromptResult:
        result: PromptResult = self._call("prefill", {"chunk": chunk}, lambda: self._runner.prefill(chunk))
        return result

    def draft(self, wanted: tuple[DraftRequest, ...]) -> tuple[Draft, ...]:
        drafts: tuple[Draft, ...] = self._call("draft", {"wanted": wanted}, lambda: self._runner.draft(wanted))
        return drafts

    def idle(self) -> None:
        self._call("idle", {}, self._runner.idle)

    def kv_bytes(self) -> int:
        return self._runner.kv_bytes()

    def device_bytes(self) -> tuple[int, int]:
        return self._runner.device_bytes()

    def interrupt(self) -> None:
        self._runner.interrupt()

    def close(self) -> None:
        self._runner.close()
        self._end()

    def _call(self, name: str, given: dict[str, Any], call: Callable[[], Any]) -> Any:
        try:
            result = call()
        except SequenceFailed as error:
            self._write(name, given, {"failed": type(error).__name__, "ids": error.ids})
            raise
        self._write(name, given, result)
        return result

    def _write(self, name: str, given: dict[str, Any], result: Any) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"call": name, **encode(given), "gave": encode(result)}) + "\n")
            self._file.flush()
        except OSError as error:
            logger.error("debug.record: %s is not written any further: %s", self._path, error)
            self._end()

    def _end(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # buffered lines cannot be written either
                self._file.close()
            self._file = None


class _RecordingStore:
    """Implements `core.blocks.BlockStore` over another store."""

    def __init__(self, store: BlockStore, write: Callable[[str, dict[str, Any], Any], None]) -> None:
        self._store, self._write = store, write
        self.kinds, self.cuts = store.kinds, store.cuts
        self.bytes_per_token, self.state_bytes = store.bytes_per_token, store.state_bytes

    def take(self, source: PromptId | SequenceId, spans: Sequence[Span]) -> tuple[BlockRef, ...]:
        refs = self._store.take(source, spans)
        self._write("take", {"source": source, "spans": tuple(spans)}, refs)
        return refs

    def free(self, block: BlockId) -> None:
        self._store.free(block)
        self._write("free", {"block": block}, None)

    def dump(self, block: BlockId) -> tuple[Any, list[memoryview]]:
        return self._store.dump(block)

    def load(self, arrays: Any, data: memoryview) -> BlockRef:
        """Raise ValueError: a replay would not have the bytes of an earlier run."""
        raise ValueError("a run that is recorded takes nothing from the disk")


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """A recorded call with another result in the replay. Lines count from 1."""

    line: int
    recorded: Any
    replayed: Any


def replay(file: Path, runner: Runner) -> Iterator[Difference]:
    """Repeat a recorded run's calls on a runner that has loaded its model; yield the differences.

    Failed calls are not repeated, but their effects are. Raises ValueError if that cannot be done.
    """
    in_flight = 0
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        said = json.loads(line)
        name, gave = said.pop("call"), decode(said.pop("gave"))
        if name == "load":
            continue
        given = {key: decode(value) for key, value in said.items()}
        if isinstance(gave, dict) and "failed" in gave:
            if name == "start" and in_flight and not gave["ids"]:
                raise ValueError(f"line {number}: a step failed beside one in flight, which cannot be replayed")
            _repeat_failure(runner, name, given, gave)
            in_flight = 0 if name == "collect" else in_flight
            continue
        in_flight += (name == "start" and bool(given["plan"].decodes)) - (name == "collect")
        replayed = _made(runner, name, given)
        if replayed != gave:
            yield Difference(number, gave, replayed)


def read_config(file: Path) -> EngineConfig:
    """Return the configuration of the recorded run's runner. Raises ValueError for a file that is no record."""
    with file.open(encoding="utf-8") as lines:
        said = json.loads(next(lines, "null"))
    if not isinstance(said, dict) or said.get("call") != "load":
        raise ValueError(f"{file} is not the record of a run: it does not begin with how the model was loaded")
    return EngineConfig(
        model_path=said["model_path"],
        backend=said["backend"],
        kv_cache=KVCacheConfig(**said["kv_cache"]),
        speculation=SpeculationConfig(**said.get("speculation", {})),
        mock=MockConfig(**said["mock"]),
    )


def _repeat_failure(runner: Runner, name: str, given: dict[str, Any], gave: dict[str, Any]) -> None:
    """Leave a runner in the state in which a failed call left the recorded one."""
    if name == "draft":
        return  # what the draft model held is not requested again
    plan = StepPlan()
    if name == "start":
        plan = dataclasses.replace(given["plan"], decodes=(), masked=(), chunks=())
    elif name == "prefill":
        plan = StepPlan(dropped=(given["chunk"].prompt,))
    runner.start(plan, lambda newest: ())
    if name != "prefill" and not gave["ids"]:
        runner.idle()


def _made(runner: Runner, name: str, given: dict[str, Any]) -> Any:
    if name == "start":
        recorded = iter(given["masks"])

        def masks(newest: Newest) -> MaskBits:
            asked, bits = next(recorded)
            if asked != newest:
                raise ValueError(f"other tokens came before a mask: {newest} and not {asked}")
            return bits  # type: ignore[no-any-return]

        return runner.start(given["plan"], masks)
    if name in ("take", "free"):
        assert runner.blocks is not None, "a runner that keeps no blocks cannot replay this run"
        return getattr(runner.blocks, name)(*given.values())
    return getattr(runner, name)(*given.values())
