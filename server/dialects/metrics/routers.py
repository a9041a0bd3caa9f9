"""The load of each model under the names that routers read from vLLM: requests that run and wait, and KV cache usage.

A router in front of several servers asks each of them, every few seconds, how full it is. smg, for one, knows a server
that is not SGLang by vLLM's names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric

from mlx_backend.api.interface import EngineStats, ModelInfo

Named = Sequence[tuple[str, EngineStats, ModelInfo | None]]
"""Each model by its id; without the last where it is not loaded."""


def router_families(models: Named) -> Iterator[Metric]:
    """Every metric for routers."""
    running = _gauge("num_requests_running", "Sequences that decode, and prompts that are being computed")
    waiting = _gauge("num_requests_waiting", "Prompts in the queue")
    usage = _gauge("kv_cache_usage_perc", "Memory for requests that is planned for live ones, 0 to 1")
    for model, stats, info in models:
        running.add_metric([model], stats.num_running + stats.num_prefilling)
        waiting.add_metric([model], stats.num_waiting)
        usage.add_metric([model], _usage(stats, info))
    yield from (running, waiting, usage)


def _gauge(name: str, about: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"vllm:{name}", about, labels=["model_name"])


def _usage(stats: EngineStats, info: ModelInfo | None) -> float:
    """The share that admission counts with; 0 where no limit holds. What the prefix cache keeps does not count."""
    if info is None or info.memory is None or info.memory.free_bytes <= 0:
        return 0.0
    return min(stats.planned_bytes / info.memory.free_bytes, 1.0)
