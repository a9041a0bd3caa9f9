"""Steps of the acceptance kit, in order: harmless ones first, those that may crash the machine last. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


class UnknownStep(ValueError):
    """A step that does not exist; the message lists those that do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A row of the table. `function`: in `mlx_backend.acceptance`; empty if the kit itself runs the step."""

    name: str
    title: str
    function: str = ""
    needs_metal: bool = False
    is_risky: bool = False
    """A driver fault may end the process or the machine here."""
    is_opt_in: bool = False
    wired: Literal["never", "auto", "always"] = "never"
    environ: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 3600.0


_LARGE_BUFFERS = {"MLX_MAX_OPS_PER_BUFFER": "1000", "MLX_MAX_MB_PER_BUFFER": "400"}

STEPS = (
    Step(name="facts", title="the machine: chip, cores, macOS, wheels, settings, old panics"),
    Step(name="device", title="MLX's device, and a product on it", function="device", timeout_s=120),
    Step(name="parity", title="greedy output beside the CPU's, each kind of KV cache", function="parity"),
    Step(name="attention", title="fused attention by head size and mask", function="attention"),
    Step(name="load", title="loading: GB/s, peak, wired bytes", function="load"),
    Step(name="prefill", title="prefill by context and step, peak beside our model", function="prefill"),
    Step(name="decode", title="decoding by context, after idleness", function="decode"),
    Step(name="batch", title="streams at once", function="batch"),
    Step(
        name="buffers_default", title="decoding with MLX's command buffers", function="short_decode", needs_metal=True
    ),
    Step(
        name="buffers_large",
        title="decoding with buffers of 1,000 operations and 400 MB",
        function="short_decode",
        needs_metal=True,
        environ=_LARGE_BUFFERS,
    ),
    Step(
        name="serve",
        title="a server: wired bytes before, while it serves, and after SIGTERM",
        is_risky=True,
        wired="auto",
        timeout_s=1800,
    ),
    Step(
        name="wired_decode",
        title="decoding with wired weights, after idleness",
        function="decode",
        needs_metal=True,
        is_risky=True,
        wired="always",
    ),
    Step(
        name="out_of_memory",
        title="running out of memory, and going on",
        function="out_of_memory",
        needs_metal=True,
        is_risky=True,
    ),
    Step(
        name="soak",
        title="two streams and an evicting prefix cache",
        function="soak",
        is_risky=True,
        is_opt_in=True,
        wired="auto",
        timeout_s=6 * 3600,
    ),
)

_QUICK = {"contexts": [256, 1024], "steps": [256], "idles_s": [0.0], "batches": [1, 2], "num_tokens": 16}
_FULL = {
    "contexts": [1024, 4096, 16384],
    "steps": [256, 512, 1024, 2048],
    "idles_s": [0.0, 2.0, 30.0],
    "batches": [1, 2, 4, 8],
    "num_tokens": 64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KitOptions:
    """Options set by the user."""

    model: str
    """Folder of the model."""
    is_quick: bool = True
    soak_s: float = 0.0
    only: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """Options that results in one file must have in common."""
        return {"model": self.model, "is_quick": self.is_quick}


def choose(options: KitOptions) -> tuple[Step, ...]:
    """Return the steps to run, in the table's order. Raises UnknownStep."""
    names = [step.name for step in STEPS]
    for name in options.only:
        if name not in names:
            raise UnknownStep(f"there is no step {name!r}; there are {', '.join(names)}")
    if options.only:
        asks_device = any(step.needs_metal for step in STEPS if step.name in options.only)
        return tuple(step for step in STEPS if step.name in options.only or (asks_device and step.name == "device"))
    return tuple(step for step in STEPS if not step.is_opt_in or options.soak_s)


def sent_options(step: Step, options: KitOptions) -> dict[str, Any]:
    """Return the options of a step for its process."""
    sizes = _QUICK if options.is_quick else _FULL
    soak_s = options.soak_s if step.name == "soak" else 0.0
    return {"model": options.model, "is_quick": options.is_quick, "wired": step.wired, "soak_s": soak_s, **sizes}


def skip_reason(step: Step, has_metal: bool) -> str | None:
    """Return why a step is skipped on this machine; None if it is not."""
    return "needs Metal" if step.needs_metal and not has_metal else None


def judge(outcome: Mapping[str, Any]) -> str:
    """Return `passed`, `failed` or `skipped` for a step's outcome."""
    if outcome.get("skipped"):
        return "skipped"
    return "passed" if all(check["is_kept"] for check in outcome.get("checks", ())) else "failed"


def to_do(steps: Sequence[Step], done: Mapping[str, Mapping[str, Any]], only: Sequence[str]) -> list[Step]:
    """Return the steps without a result, and the named ones. An interrupted step is repeated only if named."""
    return [step for step in steps if step.name in only or step.name not in done]
