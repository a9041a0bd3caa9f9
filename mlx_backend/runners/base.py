"""Runner: the narrow door between the engine and a device. Everything here is called on the device thread."""

from __future__ import annotations

import collections.abc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mlx_backend.admission import Budget
from mlx_backend.errors import GrammarFailed
from mlx_backend.errors import failed as failed
from mlx_backend.interface import ContextConfig, LoadProgress, ModelInfo, TokenLogprobs
from mlx_backend.prefix_cache.store import Store
from mlx_backend.scheduler import Chunk
from mlx_backend.sequence import Prefill, Sequence


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token that a step chose for one sequence."""

    sequence: Sequence
    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A decode step that was started. `state` is the runner's own."""

    sequences: tuple[Sequence, ...]
    state: Any
    failures: tuple[GrammarFailed, ...] = ()
    """Of sequences that cannot follow their grammar any further; what the step draws for them means nothing."""


def limited_by(config: ContextConfig, limit: int, fitting: int) -> Literal["model", "configuration", "memory"]:
    """What makes the context limit `fitting`, where the model and the configuration together allow `limit`."""
    if fitting < limit:
        return "memory"
    return "model" if config.limit is None else "configuration"


class Runner(Protocol):
    """Computes. A SequenceFailed it raises names the sequences that are lost; the others go on unharmed.

    But where memory runs out in a decode step, or a step cannot be collected, every row is lost, and may be started
    again from a prefill.
    """

    budget: Budget | None
    """What live sequences may need together, once the model is loaded; None: no bound."""

    @property
    def prefix_store(self) -> Store | None:
        """What the prefix cache takes blocks from, once the model is loaded; None where it does not know the caches."""

    def load(self, report: Callable[[LoadProgress], None]) -> ModelInfo:
        """Load the model. Raises ModelLoadError."""

    def prefill(self, chunk: Chunk) -> None:
        """Compute a chunk into `chunk.prefill.state`; returns when the device is done. Raises SequenceFailed."""

    def start(self, sequences: collections.abc.Sequence[Sequence]) -> Step:
        """Start one decode step of these sequences, without waiting for it.

        Sequences that were in the last step and are not in this one leave the batch, new ones join it.
        Counts `num_started_tokens` up. Raises SequenceFailed; then no step was started.
        """

    def collect(self, step: Step) -> list[Sampled]:
        """Wait for a step, the oldest one not yet collected, and read its tokens. Raises SequenceFailed."""

    def idle(self) -> None:
        """Nothing is left to do: let go of every row and of the device's spare buffers."""

    def kv_bytes(self, prefills: Iterable[Prefill]) -> int:
        """Bytes of the KV caches of the batch, and of prompts that are being computed."""

    def device_bytes(self) -> tuple[int, int]:
        """(allocated now, the most so far) by the device, weights among them."""

    def interrupt(self) -> None:
        """Called from any thread when the engine closes: cut short what only waits."""

    def close(self) -> None:
        """Let go of the model."""
