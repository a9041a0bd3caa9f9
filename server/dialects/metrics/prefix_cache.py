"""Metrics of the prefix cache: contents and hits of each tier, and tokens that had to be computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from mlx_backend.api.interface import PrefixCacheStats

Named = Sequence[tuple[str, PrefixCacheStats]]
"""Statistics of each model's prefix cache, by model id."""

_TIERS = ("ram", "disk")


def prefix_cache_families(models: Named) -> Iterator[Metric]:
    """Yield every metric of the prefix cache."""
    yield _gauge("bytes", "Bytes that the prefix cache holds, by tier", models)
    yield _gauge("blocks", "Blocks that the prefix cache holds, by tier", models)
    yield _hits(models)
    yield _evicted(models)
    yield _prompt_tokens(models)


def _gauge(what: str, about: str, models: Named) -> Metric:
    family = GaugeMetricFamily(f"pippin_prefix_cache_{what}", about, labels=["model", "tier"])
    for model, stats in models:
        for tier in _TIERS:
            value = getattr(stats, f"{tier}_bytes" if what == "bytes" else f"num_{tier}_blocks")
            family.add_metric([model, tier], value)
    return family


def _hits(models: Named) -> Metric:
    about = "Prompt tokens that were taken from the prefix cache, by tier"
    family = CounterMetricFamily("pippin_prefix_cache_hit_tokens", about, labels=["model", "tier"])
    for model, stats in models:
        for tier in _TIERS:
            family.add_metric([model, tier], getattr(stats, f"num_{tier}_tokens"))
    return family


def _evicted(models: Named) -> Metric:
    about = "Blocks that left a tier of the prefix cache because there was no room"
    family = CounterMetricFamily("pippin_prefix_cache_evicted_blocks", about, labels=["model", "tier"])
    for model, stats in models:
        family.add_metric([model, "ram"], stats.num_evicted)
        family.add_metric([model, "disk"], stats.num_disk_evicted)
    return family


def _prompt_tokens(models: Named) -> Metric:
    about = "Prompt tokens, but for the last of each, by whether they were computed or known"
    family = CounterMetricFamily("pippin_prompt_tokens", about, labels=["model", "source"])
    for model, stats in models:
        family.add_metric([model, "cached"], stats.num_ram_tokens + stats.num_disk_tokens)
        family.add_metric([model, "computed"], stats.num_computed_tokens)
    return family
