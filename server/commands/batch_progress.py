"""Progress display of a batch: a bar on a terminal, periodic lines elsewhere, and the counts at the end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.batches.progress import Progress, duration

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

Begin = Callable[[Progress], None]
_TELL_S = 10.0
_DRAW_S = 0.2


@contextmanager
def shown(what: str) -> Iterator[Begin]:
    """Yield a function that takes the progress to show on standard error until the context ends."""
    found: list[Progress] = []
    is_over = threading.Event()
    draw = _draw if sys.stderr.isatty() else _tell
    thread = threading.Thread(target=draw, args=(what, found, is_over), name="progress", daemon=True)
    thread.start()
    try:
        yield found.append
    finally:
        is_over.set()
        thread.join()


def describe(progress: Progress, now: float) -> str:
    """Return one line with lines done, speed and time left."""
    share = 100 * progress.num_done // progress.num_lines if progress.num_lines else 100
    parts = [f"{progress.num_done:,} of {progress.num_lines:,} lines ({share}%)", *_details(progress, now)]
    return ", ".join(parts)


def summary(progress: Progress, out: Path, took_s: float) -> str:
    """Return the summary of a run."""
    tokens = progress.tokens
    lines = [f"{out}: {progress.num_done:,} lines answered, {progress.num_failed:,} of them failed"]
    if tokens.prompt or tokens.output:
        cached = f" ({100 * tokens.cached / tokens.prompt:.0f}% cached)" if tokens.prompt else ""
        lines.append(
            f"this run: {duration(took_s)}, {tokens.prompt:,} prompt tokens{cached}, {tokens.output:,} output tokens"
        )
    return "\n".join(lines)


def _details(progress: Progress, now: float) -> Iterator[str]:
    if progress.num_failed:
        yield f"{progress.num_failed:,} failed"
    rate, left_s = progress.rate(now), progress.left_s(now)
    if rate > 0:
        yield f"{rate:.1f} lines/s" if rate >= 1 else f"{60 * rate:.1f} lines/min"
    if progress.waits_for:
        yield f"waiting for the server ({progress.waits_for})"
    elif left_s:
        yield f"{duration(left_s)} left"


def _tell(what: str, found: list[Progress], is_over: threading.Event) -> None:
    while not is_over.wait(_TELL_S):
        for progress in found:
            print(f"{what}: {describe(progress, time.monotonic())}", file=sys.stderr, flush=True)


def _draw(what: str, found: list[Progress], is_over: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    details = TextColumn("{task.fields[details]}")
    columns: tuple[Any, ...] = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), details)
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, details="")
        while not is_over.wait(_DRAW_S):
            _update(bar, task, found)


def _update(bar: Bar, task: Any, found: list[Progress]) -> None:
    for progress in found:
        details = ", ".join(_details(progress, time.monotonic()))
        bar.update(task, completed=progress.num_done, total=progress.num_lines, details=details)
