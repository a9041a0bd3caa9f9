"""Encode models, engines and their recent activity as the answer of `/status`. Counts nothing itself."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mlx_backend.api.interface import EngineStats, KVCachePart, KVCacheReport, ModelInfo
from server.config import Config, fields, value_of
from server.dialects.dashboard.schema import (
    StatusCounts,
    StatusDetails,
    StatusMemory,
    StatusModel,
    StatusPrefixCache,
    StatusRank,
    StatusRanks,
    StatusRequest,
    StatusSeries,
    StatusSetting,
    StatusSpeculation,
)
from server.service.live import LiveRequest, Recent
from server.service.registry import ServedModel

MAX_REQUESTS = 50
"""Most requests of a model that are listed individually."""
_ORDER = {"writing": 0, "reading": 1, "waiting": 2}


def encode_settings(config: Config, origins: Mapping[str, str]) -> list[StatusSetting]:
    """Return every setting. A setting of unknown origin is reported as default or set, by its value."""
    return [_encode_setting(field, value_of(config, field.key), origins) for field in fields()]


def _encode_setting(field: Any, value: Any, origins: Mapping[str, str]) -> StatusSetting:
    is_default = value == field.default
    origin = origins.get(field.key, "default" if is_default else "set")
    return StatusSetting(
        key=field.key, value=_shorten(value), origin=_shorten(origin), is_default=is_default, help=field.help
    )


def _shorten(value: Any) -> Any:
    """Shorten a path to its last part: the rest is private to the machine."""
    return re.sub(r"(?<![^\s])[/~]\S*/(?=[^/\s])", "…/", value) if isinstance(value, str) else value


def encode_model(model: ServedModel, recent: Recent, since: int) -> StatusModel:
    """Return one model, with its seconds after `since`."""
    info, stats, health = model.info, model.engine.stats(), model.health()
    live = sorted(model.measures.live.list(), key=lambda each: _ORDER[each.state])  # stable: oldest first in each state
    done, total = health.load.done_bytes, health.load.total_bytes
    return StatusModel(
        id=model.id,
        aliases=list(model.aliases),
        state=model.state,
        health=health.status,
        detail=health.detail,
        load_percent=round(100 * done / total, 1) if total else None,
        is_pinned=model.is_pinned,
        details=None if info is None else _encode_details(info),
        memory=_encode_memory(info if model.is_present else None, stats),
        prefix_cache=_encode_prefix_cache(info, stats),
        counts=StatusCounts(**{name: getattr(stats, name) for name in StatusCounts.model_fields}),
        speculation=_encode_speculation(stats),
        ranks=None if info is None or not model.is_present else _encode_ranks(info, stats),
        num_requests=len(live),
        requests=[_encode_request(each) for each in live[:MAX_REQUESTS]],
        series=_encode_series(recent, since),
    )


def _encode_details(info: ModelInfo) -> StatusDetails:
    return StatusDetails(
        context_limit=info.context_limit,
        context_limited_by=info.context_limited_by,
        num_parameters=info.num_parameters,
        weights_bytes=info.weights_bytes,
        load_s=info.load_s,
        is_batched=info.is_batched,
        unbatched_reason=info.unbatched_reason,
        kv_precision=_describe_precision(info),
        kv_cache=[_describe_kv_cache(cache) for cache in info.kv_caches],
        kv_bytes_per_token=sum(cache.num_layers * cache.bytes_per_token for cache in info.kv_caches),
    )


def _describe_precision(info: ModelInfo) -> str:
    parts = (part for cache in info.kv_caches for part in cache.parts)
    return " and ".join(dict.fromkeys(map(_describe_part, parts)))


def _describe_kv_cache(cache: KVCacheReport) -> str:
    held = ", ".join(dict.fromkeys(_describe_part(part) for part in cache.parts))
    window = f" of {cache.window:,} tokens" if cache.window else ""
    return f"{cache.num_layers} x {cache.kind}{window}" + (f" in {held}" if held else "")


def _describe_part(part: KVCachePart) -> str:
    return "full precision" if part.bits is None else f"{part.bits} bits"


def _encode_memory(info: ModelInfo | None, stats: EngineStats) -> StatusMemory:
    divided = None if info is None else info.memory
    return StatusMemory(
        limit_bytes=None if divided is None else divided.limit_bytes,
        limit_basis="" if divided is None else divided.limit_basis,
        raise_command=None if divided is None else divided.raise_command,
        weights_bytes=0 if info is None else info.weights_bytes,
        reserve_bytes=0 if divided is None else divided.reserve_bytes,
        kv_bytes=stats.kv_bytes,
        planned_bytes=stats.planned_bytes,
        prefix_bytes=stats.prefix_cache.ram_bytes,
        active_bytes=stats.active_bytes,
        peak_bytes=stats.peak_bytes,
    )


def _encode_prefix_cache(info: ModelInfo | None, stats: EngineStats) -> StatusPrefixCache:
    kept, now = None if info is None else info.prefix_cache, asdict(stats.prefix_cache)
    is_on_disk = kept is not None and kept.folder is not None
    return StatusPrefixCache(
        reason=None if kept is None else kept.reason,
        is_on_disk=is_on_disk,
        max_ram_bytes=0 if kept is None else kept.ram_bytes,
        max_disk_bytes=kept.max_bytes if kept is not None and is_on_disk else 0,
        **{name: now[name] for name in StatusPrefixCache.model_fields if name in now},
    )


def _encode_speculation(stats: EngineStats) -> StatusSpeculation:
    drafted = stats.speculation.drafted
    return StatusSpeculation(num_drafted_tokens=drafted.num_drafted, num_accepted_tokens=drafted.num_accepted)


def _encode_ranks(info: ModelInfo, stats: EngineStats) -> StatusRanks | None:
    if info.ranks is None:
        return None
    ranks = [
        StatusRank(
            rank=rank.rank,
            num_layers=rank.num_layers,
            weights_bytes=rank.weights_bytes,
            limit_bytes=rank.limit_bytes,
            kv_bytes=held.kv_bytes,
            active_bytes=held.active_bytes,
            round_trip_s=held.round_trip_s,
            progress_age_s=round(held.progress_age_s, 3),
            is_busy=held.is_busy,
        )
        for rank, held in zip(info.ranks.ranks, stats.ranks, strict=False)  # an engine that ended reports none
    ]
    return StatusRanks(parallel=info.ranks.parallel, link=info.ranks.link, ranks=ranks)


def _encode_request(live: LiveRequest) -> StatusRequest:
    told = asdict(live)
    age_s = time.perf_counter() - told.pop("started_at")
    return StatusRequest(id=told.pop("request_id"), age_s=round(age_s, 2), **told)


def _encode_series(recent: Recent, since: int) -> StatusSeries:
    seconds = recent.since(since)
    return StatusSeries(
        at=[second.at for second in seconds],
        output=[round(second.output_tok_s, 2) for second in seconds],
        prompt=[round(second.prompt_tok_s, 2) for second in seconds],
        ttft=[_rounded(second.ttft_s) for second in seconds],
        max_ttft=[_rounded(second.max_ttft_s) for second in seconds],
        itl=[_rounded(second.itl_s) for second in seconds],
        max_itl=[_rounded(second.max_itl_s) for second in seconds],
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 5)
