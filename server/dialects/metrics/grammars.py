"""Metrics of grammars: compilations by outcome, and the processes that follow grammars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from server.grammars.compiler import GrammarStats

Named = Sequence[tuple[str, GrammarStats]]
"""Counters of each model's grammars, by model id."""


def grammar_families(models: Named) -> Iterator[Metric]:
    """Yield every metric of grammars."""
    about = "Grammars that were asked for, by how compiling them ended"
    outcomes = CounterMetricFamily("pippin_grammars", about, labels=["model", "outcome"])
    processes = GaugeMetricFamily("pippin_grammar_processes", "Compiled grammars in memory", labels=["model"])
    size = GaugeMetricFamily("pippin_grammar_bytes", "Memory of the processes of compiled grammars", labels=["model"])
    for model, stats in models:
        for outcome, number in stats.outcomes.items():
            outcomes.add_metric([model, outcome], number)
        processes.add_metric([model], stats.num_processes)
        size.add_metric([model], stats.num_bytes)
    yield from (outcomes, processes, size)
