"""`pippin acceptance`: measure a new machine, step by step, into one file. What each step is: docs/acceptance.md."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import typer

from server import pocket
from server.config import ConfigError

_COLOURS = {"passed": "green", "failed": "red", "interrupted": "red", "skipped": "yellow"}


def acceptance(
    model: str = typer.Argument(
        pocket.MODEL_ID, metavar="MODEL", help="Model folder or `pocket`. Larger models test more."
    ),
    out: str = typer.Option(..., "--out", metavar="FILE", help="JSON file for the result."),
    is_quick: bool = typer.Option(True, "--quick/--full", help="One or two minutes (quick), or half an hour (full)."),
    soak_minutes: float = typer.Option(
        0.0, min=0, help="Minutes of a final soak test with two streams; 30 is typical."
    ),
    only: str | None = typer.Option(None, metavar="STEP,…", help="Run only these steps, even if they have a result."),
    is_fresh: bool = typer.Option(False, "--fresh", help="Discard an earlier unfinished run."),
) -> None:
    """Test this machine: hardware, equality with the CPU, memory, speed, recovery. Exits with 1 if a step fails.

    The riskiest steps run last. An interrupted run, even after a restart of the machine, resumes where it stopped.
    """
    from server.acceptance.kit import OtherRun, run_kit
    from server.acceptance.steps import KitOptions, UnknownStep

    folder = pocket.folder() if pocket.is_meant(model) else Path(model).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"folder {model} does not exist; to download a model, run `pippin pull {model}`")
    names = tuple(filter(None, (only or "").split(",")))
    options = KitOptions(model=str(folder.resolve()), is_quick=is_quick, soak_s=60 * soak_minutes, only=names)
    try:
        with _stopped_by_signals():
            document = run_kit(options, Path(out), _machine(), _report, is_fresh=is_fresh)
    except (OtherRun, UnknownStep) as error:
        raise ConfigError(str(error)) from None
    except BlockingIOError:
        raise ConfigError(f"--out {out}: another run is writing to it") from None
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror or error}") from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    _summarize(document, Path(out))
    raise typer.Exit(int(any(step["status"] in ("failed", "interrupted") for step in document["steps"])))


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGINT end the step's process, then the run. A shell may have SIGINT ignored."""
    before = {each: signal.signal(each, signal.default_int_handler) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _machine() -> Any:
    """Return this machine."""
    from mlx_backend.planning.macos import find_panics, wired_bytes
    from server.acceptance import facts, processes
    from server.acceptance.kit import Machine
    from server.acceptance.steps import KitOptions, Step, sent_options

    def run(step: Step, options: KitOptions, progress: Any) -> dict[str, Any]:
        if step.function:
            sent = sent_options(step, options)
            return processes.run_step(step.function, sent, progress, environ=step.environ, timeout_s=step.timeout_s)
        command = [sys.executable, "-m", "pippin_main", "serve", options.model, "--port", "0"]
        return processes.measure_server(command, wired_bytes, step.timeout_s)

    boot = facts.boot_id()
    return Machine(
        facts=partial(facts.gather),
        boot=lambda: boot,
        panics=lambda: [str(panic) for panic in find_panics()],
        run=run,
    )


def _report(step: Any, result: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    seconds = f"{result['seconds']:7.1f} s" if "seconds" in result else " " * 9
    console.print(f"{result['status']:<11}", style=_COLOURS[result["status"]], end="", markup=False)
    detail = f" ({result['detail']})" if result.get("detail") else ""
    console.print(f"{seconds}  {step.name}: {step.title}{detail}", markup=False)
    for check in result.get("checks", ()):
        if not check["is_kept"]:
            bounds = f"from {check.get('low')} to {check.get('high')} {check.get('unit') or ''}".rstrip()
            console.print(f"{'':22}-> {check['name']}: {check['measured']:g}, expected {bounds}", markup=False)


def _summarize(document: dict[str, Any], out: Path) -> None:
    counts: dict[str, int] = {}
    for step in document["steps"]:
        counts[step["status"]] = counts.get(step["status"], 0) + 1
    print(f"{', '.join(f'{count} {status}' for status, count in sorted(counts.items()))}; {out}")
    for panic in document["new_panics"]:
        print(f"the GPU driver panicked during the run: {panic}")
