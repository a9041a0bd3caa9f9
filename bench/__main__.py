"""`python -m bench`: measure Pippin, mlx_lm.server and raw mlx-lm in one run; print the figures and the ratios."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.checkpoint import SHAPES
from bench.prompts import open_prompts
from bench.raw_process import run_raw
from bench.report import Row, build_document, build_rows, build_table, failures
from bench.rounds import Measurement, Plan, measure
from bench.servers import OURS, StartError, kinds
from bench.workloads import WORKLOADS

NUM_FILES = 4096
"""Open files needed: each connection is one, here and in the server."""

progress = Console(stderr=True)


def main(
    workloads: Annotated[str, typer.Option(help="Which to run, with commas between.")] = ",".join(WORKLOADS),
    rounds: Annotated[int, typer.Option(min=1, help="How often to go through all servers.")] = 2,
    model: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder of an MLX model.", show_default="a made one"),
    ] = None,
    shape: Annotated[str, typer.Option(help=f"Of the made model: {', '.join(SHAPES)}.")] = "llama",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything measured to this file.")] = None,
    kv_bits: Annotated[
        int | None, typer.Option(help="Quantize the KV caches of ours and of the peer; ours without it runs beside.")
    ] = None,
    peer: Annotated[bool, typer.Option("--peer/--no-peer", help="Measure mlx_lm.server too.")] = True,
    raw: Annotated[
        bool, typer.Option("--raw/--no-raw", help="Measure raw mlx-lm too; it has a model of its own in memory.")
    ] = True,
) -> None:
    """Measure Pippin beside raw mlx-lm and mlx_lm.server.

    Compare figures of one run only, and run nothing else on the machine meanwhile.
    """
    chosen = _chosen(workloads)
    if shape not in SHAPES:
        raise typer.BadParameter(f"no shape {shape!r}; there are {', '.join(SHAPES)}")
    _allow_many_files()
    signal.signal(signal.SIGTERM, _leave)  # ends the servers with this process
    with _model(model, shape) as folder:
        plan = Plan(folder, kinds(kv_bits, peer), chosen, rounds, say=_say)
        measurements = _measure(plan, has_raw=raw)
    rows = build_rows(measurements, rounds)
    _print(rows, failures(measurements))
    if json_file:
        settings = {"model": str(model) if model else shape, "workloads": chosen, "rounds": rounds, "kv_bits": kv_bits}
        document = build_document(measurements, rows, settings)
        json_file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if not any(measurement.subject == OURS.name for measurement in measurements):
        raise typer.Exit(1)


def _measure(plan: Plan, has_raw: bool) -> list[Measurement]:
    try:
        with run_raw(plan.model) if has_raw else nullcontext() as raw:
            return measure(plan, open_prompts(plan.model), raw)
    except StartError as error:
        _say(str(error))
        raise typer.Exit(1) from error


def _print(rows: Sequence[Row], failed: Sequence[str]) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=160)  # a file has no width
    console.print(build_table(rows))
    for line in failed:
        console.print(f"failed: {line}", markup=False, highlight=False)


def _chosen(workloads: str) -> list[str]:
    asked = {name.strip() for name in workloads.split(",")}
    if unknown := asked - set(WORKLOADS):
        raise typer.BadParameter(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    return [name for name in WORKLOADS if name in asked]


@contextmanager
def _model(given: Path | None, shape: str) -> Iterator[Path]:
    """Yield the given model's folder, or a temporary one with a made model."""
    if given:
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="pippin-bench-") as name:
        folder = Path(name) / shape
        _say(f"writing a model of the shape of {shape}")
        subprocess.run([sys.executable, "-m", "bench.checkpoint", str(folder), shape], check=True)
        yield folder


def _allow_many_files() -> None:
    """Raise the soft limit, which is 256 on some systems; child processes inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = NUM_FILES if hard == resource.RLIM_INFINITY else min(NUM_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _leave(number: int, frame: object) -> None:
    sys.exit(128 + number)


def _say(text: str) -> None:
    progress.print(text, style="dim", markup=False, highlight=False)


if __name__ == "__main__":
    typer.run(main)
