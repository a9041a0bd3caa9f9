"""Metrics of ranks: memory of each, round trip of a message, and time since its last completed call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric

from mlx_backend.api.interface import EngineStats, ModelInfo

Named = Sequence[tuple[str, EngineStats, ModelInfo | None]]
"""Each model by its id; the info is None if it is not loaded."""

_LABELS = ["model", "rank"]


def rank_families(models: Named) -> Iterator[Metric]:
    """Yield every metric of ranks; a model in one process has no series."""
    about = "A model that several ranks share: 1 for each rank, with how and over what"
    shared = GaugeMetricFamily("pippin_rank_info", about, labels=[*_LABELS, "parallel", "link"])
    about = "Memory of a rank: limit and weights as divided at start, what it holds now, and its most"
    size = GaugeMetricFamily("pippin_rank_memory_bytes", about, labels=[*_LABELS, "kind"])
    about = "The last message to a rank that it answered, there and back"
    trip = GaugeMetricFamily("pippin_rank_round_trip_seconds", about, labels=_LABELS)
    age = GaugeMetricFamily("pippin_rank_progress_age_seconds", "Since a rank last completed a call", labels=_LABELS)
    busy = GaugeMetricFamily("pippin_rank_busy", "Whether a rank has calls that it has not completed", labels=_LABELS)
    for model, stats, info in models:
        for rank in () if info is None or info.ranks is None else info.ranks.ranks:
            labels = [model, str(rank.rank)]
            shared.add_metric([*labels, info.ranks.parallel, info.ranks.link], 1)  # type: ignore[union-attr]
            size.add_metric([*labels, "weights"], rank.weights_bytes)
            if rank.limit_bytes is not None:
                size.add_metric([*labels, "limit"], rank.limit_bytes)
        for held in stats.ranks:
            labels = [model, str(held.rank)]
            for kind in ("kv", "active", "peak"):
                size.add_metric([*labels, kind], getattr(held, f"{kind}_bytes"))
            if held.round_trip_s is not None:
                trip.add_metric(labels, held.round_trip_s)
            age.add_metric(labels, held.progress_age_s)
            busy.add_metric(labels, held.is_busy)
    yield from (shared, size, trip, age, busy)
