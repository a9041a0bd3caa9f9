"""Load of each model under vLLM's names, for routers: running and waiting requests, and KV cache usage.

A router in front of several servers polls the load of each every few seconds. smg, for example, reads vLLM's names
from any server that is not SGLang.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric

from mlx_backend.api.interface import EngineStats, ModelInfo

Named = Sequence[tuple[str, EngineStats, ModelInfo | None]]
"""Each model by its id; the info is None if it is not loaded."""


def router_families(models: Named) -> Iterator[Metric]:
    """Yield every metric for routers."""
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
    """Return the share of memory planned by admission, without the prefix cache; 0 without a limit."""
    if info is None or info.memory is None or info.memory.free_bytes <= 0:
        return 0.0
    return min(stats.planned_bytes / info.memory.free_bytes, 1.0)
