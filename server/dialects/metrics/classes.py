"""Metrics of classes of requests: live, normal and batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from mlx_backend.api.interface import PRIORITIES, EngineStats
from server.dialects.metrics.requests import buckets
from server.service.registry import ServedModel

Named = Sequence[tuple[ServedModel, EngineStats]]

_STATES = ("waiting", "prefilling", "running")
_COUNTERS = {
    "class_pauses": ("num_pauses", "Times that a sequence left so that requests of a more urgent class could go on"),
    "class_output_tokens": ("num_output_tokens", "Tokens that sequences of a class got"),
}


def class_families(models: Named) -> Iterator[Metric]:
    """Yield every metric of classes."""
    about = "Prompts and sequences of a class, by state; as pippin_num_requests_* has them together"
    family = GaugeMetricFamily("pippin_class_requests", about, labels=["model", "priority", "state"])
    for model, stats in models:
        for each in stats.classes:
            for state in _STATES:
                family.add_metric([model.id, each.priority, state], getattr(each, f"num_{state}"))
    yield family
    for name, (field, about) in _COUNTERS.items():
        counter = CounterMetricFamily(f"pippin_{name}", about, labels=["model", "priority"])
        for model, stats in models:
            for each in stats.classes:
                counter.add_metric([model.id, each.priority], getattr(each, field))
        yield counter
    about = "From a request's arrival to its first token, by class"
    times = HistogramMetricFamily("pippin_class_time_to_first_token_seconds", about, labels=["model", "priority"])
    for model, _ in models:
        for priority in PRIORITIES:
            histogram = model.measures.class_time_to_first_token_s[priority]
            times.add_metric([model.id, priority], buckets(histogram), histogram.sum)
    yield times
