"""Metrics of requests, from each model's `Measures`, and of errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from server.errors import ENGINE_ERRORS, ErrorCounts
from server.service.measures import REQUEST_ENDS, Histogram, Measures

Named = Sequence[tuple[str, Measures]]
"""Measures of each model, by its id."""

_HISTOGRAMS = (
    ("time_to_first_token_seconds", "time_to_first_token_s", "From a request's arrival to its first token"),
    ("inter_token_latency_seconds", "inter_token_latency_s", "Between deliveries of tokens of one request"),
    (
        "time_per_output_token_seconds",
        "time_per_output_token_s",
        "Mean after the first token, of finished requests with one choice",
    ),
    ("request_queue_time_seconds", "queue_time_s", "From the engine's queue to being let in"),
    ("e2e_request_latency_seconds", "e2e_latency_s", "From a request's arrival to its last token, of finished ones"),
    ("request_prompt_tokens", "prompt_tokens", "Prompt tokens of finished requests"),
    ("request_generation_tokens", "output_tokens", "Output tokens of finished requests"),
)
"""(name, field of Measures, help)."""
_FORESEEN = {(status, code): 0 for status, _, code in ENGINE_ERRORS.values()}
"""Series that exist before their first error: Prometheus sees no increase in a series that begins with 1."""


def request_families(models: Named) -> Iterator[Metric]:
    """Yield every metric of requests."""
    for name, field, about in _HISTOGRAMS:
        family = HistogramMetricFamily(f"pippin_{name}", about, labels=["model"])
        for model, measures in models:
            histogram: Histogram = getattr(measures, field)
            family.add_metric([model], buckets(histogram), histogram.sum)
        yield family
    yield _output_tokens(models)
    yield _ended(models)


def error_families(counts: ErrorCounts) -> Iterator[Metric]:
    """Yield errors returned to clients, before or after the first byte of an answer."""
    about = "Requests that were answered with an error, by HTTP status and error code; in a stream, its last event's"
    family = CounterMetricFamily("pippin_errors", about, labels=["status", "code"])
    for (status, code), number in sorted({**_FORESEEN, **counts}.items()):
        family.add_metric([str(status), code], number)
    yield family


def buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Return a histogram's cumulative counts, in Prometheus' form."""
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    return list(zip(bounds, map(float, histogram.cumulative), strict=True))


def _output_tokens(models: Named) -> Metric:
    family = CounterMetricFamily("pippin_generation_tokens", "Output tokens delivered", labels=["model"])
    for model, measures in models:
        family.add_metric([model], measures.num_output_tokens)
    return family


def _ended(models: Named) -> Metric:
    about = "Requests that have ended, by how; aborted: the client left"
    family = CounterMetricFamily("pippin_requests", about, labels=["model", "finish_reason"])
    for model, measures in models:
        for end in REQUEST_ENDS:
            family.add_metric([model, end], measures.num_ended[end])
    return family
