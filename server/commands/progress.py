"""Progress display of a command on standard error: a bar on a terminal, a line per tenth elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlx_backend.api.interface import LoadProgress

Report = Callable[[LoadProgress], None]


@contextmanager
def shown(what: str) -> Iterator[Report]:
    """Yield a function that shows the progress of `what`; any thread may call it."""
    if not sys.stderr.isatty():
        yield _Tenths(what).report
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        *(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda at: bar.update(task, completed=at.done_bytes, total=at.total_bytes or None)


class _Tenths:
    def __init__(self, what: str) -> None:
        self._what = what
        self._told = 0
        self._lock = threading.Lock()

    def report(self, at: LoadProgress) -> None:
        tenths = 10 * at.done_bytes // at.total_bytes if at.total_bytes else 0
        with self._lock:
            if tenths <= self._told:
                return
            self._told = tenths
        done, total = at.done_bytes / 1e9, at.total_bytes / 1e9
        print(f"{self._what}: {10 * tenths}% ({done:.2f} of {total:.2f} GB)", file=sys.stderr)
