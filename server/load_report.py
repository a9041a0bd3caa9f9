"""Progress of a loading model: a bar on a terminal, or a line per tenth in a log, then a description of the model."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator

from mlx_backend.api.interface import (
    NO_SPECULATION,
    DraftModelInfo,
    KVCachePart,
    KVCacheReport,
    LoadProgress,
    MemoryReport,
    ModelInfo,
    PrefixCacheReport,
    RanksInfo,
)
from server.logs import is_structured
from server.service.registry import ServedModel

logger = logging.getLogger("pippin.load")

_POLL_S = 0.05


def report_loading(model: ServedModel, url: str, when_ready: Callable[[], None]) -> threading.Thread:
    """Report on a separate thread until the model is ready or has failed; if ready, call `when_ready`."""
    thread = threading.Thread(target=_report, args=(model, url, when_ready), name="load report", daemon=True)
    thread.start()
    return thread


def _report(model: ServedModel, url: str, when_ready: Callable[[], None]) -> None:
    logger.info("loading %s; listening on %s", model.id, url)
    if sys.stderr.isatty() and not is_structured():
        _draw_bar(model)
    else:
        _log_tenths(model)
    info = model.engine.model_info
    if model.failure is None and info is not None:
        when_ready()
        logger.info("serving %s on %s: %s", model.id, url, describe(info))
        if info.ranks is not None:
            logger.info("ranks: %s", describe_ranks(info.ranks))
        if info.memory is not None:
            logger.info("memory: %s", describe_memory(info.memory))
            if info.context_limited_by == "memory" and info.memory.raise_command:
                logger.info("memory: to allow a longer context: %s", info.memory.raise_command)
        for line in describe_kv_caches(info):
            logger.info("KV cache: %s", line)
        logger.info("prefix cache: %s", describe_prefix_cache(info.prefix_cache))
        _log_reasons(model.id, info)


def _log_reasons(name: str, info: ModelInfo) -> None:
    """Log the features that this model lacks, with reasons."""
    if info.dequantized_reason is not None:
        logger.warning("attention dequantizes every layer's KV cache at every step: %s", info.dequantized_reason)
    if info.whole_heads_reason is not None:
        logger.warning("a chunk's attention keeps the scores of all heads at once: %s", info.whole_heads_reason)
    if info.max_drafts:
        logger.info("speculation: up to %d draft tokens per request are verified in a step", info.max_drafts)
        if info.draft_model is not None:
            logger.info("draft model: %s", describe_draft_model(info.draft_model))
    elif info.no_drafts_reason and info.no_drafts_reason != NO_SPECULATION:
        logger.warning("speculation is off for %s: %s", name, info.no_drafts_reason)
    if info.unbatched_reason is not None:
        logger.warning("%s is served one sequence at a time: %s", name, info.unbatched_reason)
    if info.ungrouped_reason is not None:
        logger.info("every sequence of a batch takes the memory of the longest: %s", info.ungrouped_reason)


def describe(info: ModelInfo) -> str:
    """Return one line on a loaded model."""
    rows = "batched" if info.is_batched else "one sequence at a time"
    weights = f"{info.num_parameters / 1e6:,.1f} M parameters in {info.weights_bytes / 1e6:,.1f} MB"
    return f"{weights}, context {info.context_limit} tokens (by the {info.context_limited_by}), {rows}"


def describe_draft_model(draft: DraftModelInfo) -> str:
    """One line on the model that drafts."""
    weights = f"{draft.num_parameters / 1e6:,.1f} M parameters in {draft.weights_bytes / 1e6:,.1f} MB"
    return f"{draft.name}, {weights}, {draft.kv_bytes_per_token:,} bytes per token, up to {draft.context_limit} tokens"


def describe_ranks(ranks: RanksInfo) -> str:
    """Return one line on the share of each rank."""
    held = (f"rank {each.rank} {each.num_layers} layers, {each.weights_bytes / 1e6:,.1f} MB" for each in ranks.ranks)
    return (
        f"{len(ranks.ranks)} over {ranks.link}, {ranks.parallel}: {'; '.join(held)}; "
        "below: the rank with the least room"
    )


def describe_memory(memory: MemoryReport) -> str:
    """Return one line on the use of memory."""
    parts = ((memory.weights_bytes, "weights"), (memory.free_bytes, "KV caches and computation"))
    told = ", ".join(f"{size / 1e9:.2f} for {what}" for size, what in parts)
    wired = (
        "" if not memory.wired_reason else f"; {'wired' if memory.wired_bytes else 'not wired'}: {memory.wired_reason}"
    )
    unused = f"{memory.reserve_bytes / 1e9:.2f} in reserve"
    return f"of {memory.limit_bytes / 1e9:.2f} GB ({memory.limit_basis}) {told}, {unused}{wired}"


def describe_kv_caches(info: ModelInfo) -> list[str]:
    """Return a line for every kind of layer.

    Precision of keys and values, whether as requested, and bytes per token.
    """
    return [_describe_kv_cache(cache) for cache in info.kv_caches]


def _describe_kv_cache(cache: KVCacheReport) -> str:
    facts = [f"{cache.num_layers} x {cache.kind}{f' of {cache.window} tokens' if cache.window else ''}"]
    facts += [_describe_part(part) for part in cache.parts]
    if cache.start:
        facts.append(f"the first {cache.start} tokens in full precision")
    if cache.bytes_per_token:
        facts.append(f"{cache.num_layers * cache.bytes_per_token:,} bytes per token{_against_full(cache)}")
    if cache.state_bytes:
        facts.append(f"{cache.num_layers * cache.state_bytes:,} bytes per sequence")
    return "; ".join([*facts, *filter(None, [cache.note])])


def _describe_part(part: KVCachePart) -> str:
    held = "full precision" if part.bits is None else f"{part.bits} bits in groups of {part.group_size}"
    asked = f" ({part.requested_bits} bits requested; {part.note})" if part.note else ""
    return f"{part.name} {part.num_heads} x {part.dim} in {held}{asked}"


def _against_full(cache: KVCacheReport) -> str:
    if cache.bytes_per_token == cache.full_bytes_per_token or not cache.full_bytes_per_token:
        return ""
    share = cache.bytes_per_token / cache.full_bytes_per_token
    return f" instead of {cache.num_layers * cache.full_bytes_per_token:,} ({share:.2f})"


def describe_prefix_cache(kept: PrefixCacheReport) -> str:
    """Return one line on stored prefixes, how and where they are kept, or on why there are none."""
    if kept.reason is not None:
        return f"none: {kept.reason}"
    ways = dict.fromkeys(way for _, way in kept.kinds)
    kinds = ", ".join(f"{' and '.join(kind for kind, how in kept.kinds if how == way)} {way}" for way in ways)
    folder = "no folder"
    if kept.folder is not None:
        found = f"{kept.num_disk_blocks:,} blocks found"
        folder = f"up to {kept.max_bytes / 1e9:.2f} GB in {kept.folder}, {found}"
    return f"{kinds}, in blocks of {kept.chunk_tokens} tokens; up to {kept.ram_bytes / 1e9:.2f} GB of memory; {folder}"


def _steps(model: ServedModel) -> Iterator[LoadProgress]:
    """Yield the progress periodically until loading ends."""
    tick = threading.Event()
    while model.health().status == "loading":
        yield model.engine.health().load
        tick.wait(_POLL_S)
    yield model.engine.health().load


def _draw_bar(model: ServedModel) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None)
        for load in _steps(model):
            if load.num_to_warm:
                bar.update(task, description=_told_warming(load))
            bar.update(task, completed=load.done_bytes, total=load.total_bytes or None)


def _log_tenths(model: ServedModel) -> None:
    told = told_warming = 0
    for load in _steps(model):
        warmed = 10 * load.num_warmed // load.num_to_warm if load.num_to_warm else 0
        if warmed > told_warming:
            told_warming = warmed
            logger.info(_told_warming(load))
        tenths = 10 * load.done_bytes // load.total_bytes if load.total_bytes else 0
        if tenths > told and tenths < 10:
            told = tenths
            logger.info("loading: %d%% (%.1f of %.1f GB)", 10 * tenths, load.done_bytes / 1e9, load.total_bytes / 1e9)


def _told_warming(load: LoadProgress) -> str:
    return f"warming up: {load.num_warmed} of {load.num_to_warm} shapes"
