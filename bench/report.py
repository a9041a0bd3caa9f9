"""From measurements to a table for people and a document for programs. Pure, except the machine's description."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import chain
from typing import Any

from rich.table import Table

from bench.figures import FIGURES, Figure
from bench.rounds import Measurement
from server.client.record import middle, ratio

CAPTION = "raw: mlx-lm in a process of its own, in turn with ours; peer: mlx_lm.server; median (each round)"
FULL_CAPTION = "KV caches of ours and of the peer quantized; full: ours with a KV cache in full precision"

Values = tuple[float | None, ...]
"""One value per round."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, round by round."""

    figure: Figure
    raw: Values
    ours: Values
    peer: Values
    full: Values
    """Ours with a KV cache in full precision, if ours has a quantized one."""
    ours_to_raw: Values
    ours_to_peer: Values
    ours_to_full: Values


def build_rows(measurements: Sequence[Measurement], num_rounds: int) -> list[Row]:
    """Return a row for each measured figure. Of raw, only what took turns with ours; the measurements have the rest."""
    rows = [_row(figure, measurements, range(1, num_rounds + 1)) for figure in FIGURES]
    measured = (chain(row.raw, row.ours, row.peer, row.full) for row in rows)
    return [row for row, values in zip(rows, measured, strict=True) if any(value is not None for value in values)]


def build_table(rows: Iterable[Row]) -> Table:
    """Return the table: the median of the rounds, followed by each round if there are several."""
    rows = list(rows)
    bases = ["raw", "peer"]
    if any(value is not None for row in rows for value in row.full):
        bases.append("full")
    shown = ["ours", *bases]
    captions = [CAPTION, FULL_CAPTION] if "full" in bases else [CAPTION]
    headers = ["", "unit", "better", *shown, *(f"ours/{base}" for base in bases)]
    table = Table(*headers, caption="\n".join(captions))
    for column in table.columns[3:]:
        column.justify = "right"
    for row in rows:
        figure = row.figure
        values = [_cell(getattr(row, name), figure.shown) for name in shown]
        ratios = [_cell(getattr(row, f"ours_to_{base}"), _shown_ratio) for base in bases]
        table.add_row(figure.label, figure.unit, figure.better, *values, *ratios)
    return table


def failures(measurements: Iterable[Measurement]) -> list[str]:
    """Return a line for each measurement with failed requests."""
    return [
        f"round {m.round}, {m.subject}, {m.workload}: "
        + ", ".join(f"{number} x {kind}" for kind, number in sorted(m.errors.items()))
        for m in measurements
        if m.errors
    ]


def build_document(
    measurements: Sequence[Measurement], rows: Iterable[Row], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return everything as a JSON document; seconds and bytes, unscaled."""
    return {
        "machine": machine(),
        "settings": settings,
        "figures": [_row_document(row) for row in rows],
        "measurements": [asdict(measurement) for measurement in measurements],
    }


def machine() -> dict[str, Any]:
    """Return what the figures depend on: system, processors, current load, versions."""
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "num_cpus": os.cpu_count(),
        "load_average": list(os.getloadavg()),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("mlx", "mlx-lm")},
    }


def _row(figure: Figure, measurements: Sequence[Measurement], rounds: range) -> Row:
    def values(subject: str, beside: str | None = None) -> Values:
        """Return a subject's figure in each round; with `beside`, only values measured beside that server."""
        return tuple(
            middle(
                m.figures.get(figure.key)
                for m in measurements
                if (m.round, m.subject, m.workload) == (number, subject, figure.workload) and beside in (None, m.beside)
            )
            for number in rounds
        )

    ours, peer, raw, full = values("ours"), values("peer"), values("raw", beside="ours"), values("full")
    return Row(
        figure=figure,
        raw=raw,
        ours=ours,
        peer=peer,
        full=full,
        ours_to_raw=_ratios(ours, raw),
        ours_to_peer=_ratios(ours, peer),
        ours_to_full=_ratios(ours, full),
    )


def _ratios(values: Values, bases: Values) -> Values:
    return tuple(ratio(value, base) for value, base in zip(values, bases, strict=True))


def _cell(values: Values, shown: Callable[[float], str]) -> str:
    typical = middle(values)
    if typical is None:
        return "-"
    each = " ".join("-" if value is None else shown(value) for value in values)
    return f"{shown(typical)} [dim]({each})[/dim]" if len(values) > 1 else shown(typical)


def _shown_ratio(value: float) -> str:
    return f"{value:.3f}"


def _row_document(row: Row) -> dict[str, Any]:
    figure = row.figure
    names = ("raw", "ours", "peer", "full", "ours_to_raw", "ours_to_peer", "ours_to_full")
    columns = {name: {"median": middle(getattr(row, name)), "rounds": list(getattr(row, name))} for name in names}
    return {"workload": figure.workload, "figure": figure.key, "better": figure.better, **columns}
