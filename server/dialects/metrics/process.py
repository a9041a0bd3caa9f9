"""Resources of the process itself, under the usual names of Prometheus clients. Independent of models."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_STARTED_AT = time.time()


def process_families() -> Iterator[Metric]:
    """Yield memory, time, files and threads of this process."""
    process, times = psutil.Process(), os.times()
    resident = process.memory_info().rss
    yield GaugeMetricFamily("process_resident_memory_bytes", "Memory that is not paged out", resident)
    yield CounterMetricFamily("process_cpu_seconds", "Processor time, user and system", times.user + times.system)
    yield GaugeMetricFamily("process_open_fds", "Open files and connections", process.num_fds())
    yield GaugeMetricFamily("process_threads", "Threads that Python knows of", threading.active_count())
    yield GaugeMetricFamily("process_start_time_seconds", "When the process started, Unix time", _STARTED_AT)
