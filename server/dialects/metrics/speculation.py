"""Metrics of speculation: drafted tokens, accepted ones, and seconds saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from mlx_backend.api.interface import SpeculationStats

Named = Sequence[tuple[str, SpeculationStats]]
"""Statistics of each model's speculation, by model id."""


def speculation_families(models: Named) -> Iterator[Metric]:
    """Yield every metric of speculation."""
    drafted = CounterMetricFamily("pippin_drafted_tokens", "Tokens that were guessed and verified", labels=["model"])
    accepted = CounterMetricFamily("pippin_accepted_tokens", "Those of them that answers have taken", labels=["model"])
    steps = CounterMetricFamily("pippin_drafted_steps", "Decode steps that verified guesses", labels=["model"])
    about = "Seconds that speculation won, by the measured time of steps without; less than 0 where it lost"
    won = GaugeMetricFamily("pippin_speculation_won_seconds", about, labels=["model"])
    for model, stats in models:
        drafted.add_metric([model], stats.drafted.num_drafted)
        accepted.add_metric([model], stats.drafted.num_accepted)
        steps.add_metric([model], stats.num_steps)
        won.add_metric([model], stats.won_s)
    yield from (drafted, accepted, steps, won)
