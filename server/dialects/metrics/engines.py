"""Metrics of engines and models: queues, steps, memory, state, loading, and versions of the server's parts."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from typing import get_args, get_type_hints

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from mlx_backend.api.interface import EngineHealth, EngineStats
from server import __version__
from server.power import PowerMeter
from server.service.registry import ServedModel

Named = Sequence[tuple[ServedModel, EngineStats]]

_REQUESTS = {
    "running": "Sequences that decode",
    "prefilling": "Prompts that are being computed, and sequences that wait for a row",
    "waiting": "Prompts in the queue",
}
_COUNTERS = {
    "engine_steps": ("num_steps", "Decode steps and prefill chunks done"),
    "stalls": ("num_stalls", "Pauses of running streams that were longer than scheduler.max_stall_s"),
    "preemptions": (
        "num_preemptions",
        "Times that a sequence left, to be computed again, so that older ones could go on",
    ),
    "recomputed_tokens": ("num_recomputed_tokens", "Tokens that were computed again because they were lost"),
}
_STATES: tuple[str, ...] = get_args(get_type_hints(EngineHealth)["status"])


def engine_families(models: Named) -> Iterator[Metric]:
    """Yield every metric of engines."""
    for state, about in _REQUESTS.items():
        family = GaugeMetricFamily(f"pippin_num_requests_{state}", about, labels=["model"])
        for model, stats in models:
            family.add_metric([model.id], getattr(stats, f"num_{state}"))
        yield family
    for name, (field, about) in _COUNTERS.items():
        counter = CounterMetricFamily(f"pippin_{name}", about, labels=["model"])
        for model, stats in models:
            counter.add_metric([model.id], getattr(stats, field))
        yield counter
    yield from (_sequences(models), _bytes(models), _state(models), *_loading(models))


def build_families() -> Iterator[Metric]:
    """Yield one series of value 1 that identifies the server."""
    names = ["version", "python", "mlx", "mlx_lm"]
    family = GaugeMetricFamily("pippin_build_info", "What serves: versions", labels=names)
    family.add_metric([__version__, platform.python_version(), _installed("mlx"), _installed("mlx-lm")], 1)
    yield family


def power_families(meter: PowerMeter) -> Iterator[Metric]:
    """Yield power and temperature; nothing without a reading."""
    if meter.reading is None:
        return
    watts = GaugeMetricFamily("pippin_power_watts", "Power, by part, as macmon tells it", labels=["part"])
    for part, value in meter.reading.watts.items():
        watts.add_metric([part], value)
    celsius = GaugeMetricFamily("pippin_temperature_celsius", "Mean temperature, by part", labels=["part"])
    for part, value in meter.reading.celsius.items():
        celsius.add_metric([part], value)
    yield from (watts, celsius)


@cache
def _installed(package: str) -> str:
    """Return a package's version; empty if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _sequences(models: Named) -> Metric:
    about = "Sequences that have ended in the engine, by how; one that a stop string ended is aborted there"
    family = CounterMetricFamily("pippin_sequences", about, labels=["model", "end"])
    for model, stats in models:
        for end in ("finished", "aborted", "failed"):
            family.add_metric([model.id, end], getattr(stats, f"num_{end}"))
    return family


def _bytes(models: Named) -> Metric:
    about = "Memory: limit, weights and reserve as divided at start; planned is what live requests are expected to take"
    family = GaugeMetricFamily("pippin_memory_bytes", about, labels=["model", "kind"])
    for model, stats in models:
        for kind, size in _sizes(model, stats):
            family.add_metric([model.id, kind], size)
    return family


def _sizes(model: ServedModel, stats: EngineStats) -> Iterator[tuple[str, int]]:
    """Yield (kind, bytes) of planned and held memory."""
    info = model.engine.model_info
    if info is not None and info.memory is not None:
        yield "limit", info.memory.limit_bytes
        yield "weights", info.memory.weights_bytes
        yield "reserve", info.memory.reserve_bytes
    for kind in ("planned", "kv", "active", "peak"):
        yield kind, getattr(stats, f"{kind}_bytes")


def _state(models: Named) -> Metric:
    family = GaugeMetricFamily("pippin_model_state", "1 for the state a model is in", labels=["model", "state"])
    for model, _ in models:
        found = model.health().status
        for state in _STATES:
            family.add_metric([model.id, state], found == state)
    return family


def _loading(models: Named) -> Iterator[Metric]:
    took = GaugeMetricFamily("pippin_model_load_seconds", "What loading took", labels=["model"])
    size = GaugeMetricFamily("pippin_model_load_bytes", "Weights that were loaded", labels=["model"])
    loaded = GaugeMetricFamily(
        "pippin_model_loaded", "Whether a model is in memory, ready to be used", labels=["model"]
    )
    for model, _ in models:
        info = model.engine.model_info
        loaded.add_metric([model.id], info is not None)
        if info is not None:
            took.add_metric([model.id], info.load_s)
            size.add_metric([model.id], info.weights_bytes)
    yield from (loaded, took, size)
