"""What a person sees while a model loads: a bar on a terminal, a line per tenth in a log, then what is served."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator

from mlx_backend.interface import LoadProgress, ModelInfo
from server.service.registry import ServedModel

logger = logging.getLogger("pippin.load")

_POLL_S = 0.05


def report_loading(model: ServedModel, url: str, when_ready: Callable[[], None]) -> threading.Thread:
    """Report on a thread of its own until the model is ready or has failed; then call `when_ready`, if it is."""
    thread = threading.Thread(target=_report, args=(model, url, when_ready), name="load report", daemon=True)
    thread.start()
    return thread


def _report(model: ServedModel, url: str, when_ready: Callable[[], None]) -> None:
    logger.info("loading %s; listening on %s", model.id, url)
    if sys.stderr.isatty():
        _draw_bar(model)
    else:
        _log_tenths(model)
    info = model.engine.model_info
    if model.failure is None and info is not None:
        when_ready()
        logger.info("serving %s on %s: %s", model.id, url, describe(info))
        if info.unbatched_reason is not None:
            logger.warning("%s is served one sequence at a time: %s", model.id, info.unbatched_reason)


def describe(info: ModelInfo) -> str:
    """One line on a loaded model."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in info.kv_cache_kinds)
    rows = "batched" if info.is_batched else "one sequence at a time"
    weights = f"{info.num_parameters / 1e6:,.1f} M parameters in {info.weights_bytes / 1e6:,.1f} MB"
    return f"{weights}, context {info.context_limit} tokens, KV caches: {kinds}, {rows}"


def _steps(model: ServedModel) -> Iterator[LoadProgress]:
    """The progress now and again, until there is no more."""
    tick = threading.Event()
    while model.health().status == "loading":
        yield model.engine.health().load
        tick.wait(_POLL_S)
    yield model.engine.health().load


def _draw_bar(model: ServedModel) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("loading"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None)
        for load in _steps(model):
            bar.update(task, completed=load.done_bytes, total=load.total_bytes or None)


def _log_tenths(model: ServedModel) -> None:
    told = 0
    for load in _steps(model):
        tenths = 10 * load.done_bytes // load.total_bytes if load.total_bytes else 0
        if tenths > told and tenths < 10:
            told = tenths
            logger.info("loading: %d%% (%.1f of %.1f GB)", 10 * tenths, load.done_bytes / 1e9, load.total_bytes / 1e9)
