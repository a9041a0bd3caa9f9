"""Results of `pippin bench` as a table, as JSON, as a plot. Independent of how they were measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from server.client.bench import Cell, Grid, Subject
from server.client.record import ratio


@dataclass(frozen=True, slots=True)
class Figure:
    """A group of columns."""

    key: str
    label: str
    get: Callable[[Cell], float | None]
    scale: float = 1.0
    digits: int = 1

    def shown(self, cell: Cell) -> str:
        value = self.get(cell)
        return "-" if value is None else f"{value * self.scale:,.{self.digits}f}"


FIGURES = (
    Figure("ttft_s", "TTFT ms", lambda cell: cell.ttft_s, 1e3, 0),
    Figure("decode_tok_s", "tok/s each", lambda cell: cell.decode_tok_s),
    Figure("total_tok_s", "tok/s all", lambda cell: cell.total_tok_s),
)


def build_table(subjects: Sequence[Subject]) -> Table:
    """Build a row per prompt length and concurrency; for two servers, each figure of both and their ratio A/B."""
    table = Table(*_headers(len(subjects)), box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    for cells in zip(*(subject.cells for subject in subjects), strict=True):
        table.add_row(f"{cells[0].prompt_tokens:,}", str(cells[0].concurrency), *_values(cells))
    return table


def _headers(num_subjects: int) -> Iterator[str]:
    yield from ("prompt", "at once")
    for figure in FIGURES:
        yield from [figure.label] if num_subjects == 1 else [f"A {figure.label}", "B", "A/B"]


def _values(cells: Sequence[Cell]) -> Iterator[str]:
    for figure in FIGURES:
        yield from (figure.shown(cell) for cell in cells)
        if len(cells) == 2:
            quotient = ratio(figure.get(cells[0]), figure.get(cells[1]))
            yield "-" if quotient is None else f"{quotient:.2f}"


def notes(subjects: Sequence[Subject], grid: Grid) -> Iterator[str]:
    """Yield the lines under the table: the servers, how they were measured, what failed."""
    for letter, subject in zip("AB", subjects, strict=False):
        told = f"{subject.url}, {subject.model}" + (f" ({subject.version})" if subject.version else "")
        yield f"{letter}: {told}" if len(subjects) > 1 else told
    yield (
        f"{grid.output_tokens} tokens of output; medians of {grid.num_rounds} rounds; all: of all answers together, "
        "from the first request to the last token"
    )
    for subject in subjects:
        for cell in subject.cells:
            if cell.errors:
                what = ", ".join(f"{number} x {kind}" for kind, number in sorted(cell.errors.items()))
                yield f"failed: {subject.url}, {cell.prompt_tokens:,} tokens, {cell.concurrency} at once: {what}"


def build_document(subjects: Sequence[Subject], grid: Grid) -> dict[str, Any]:
    """Return all results in machine-readable form; seconds, tokens per second."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {
            "prompt_tokens": list(grid.prompt_tokens),
            "concurrency": list(grid.concurrency),
            "output_tokens": grid.output_tokens,
            "rounds": grid.num_rounds,
        },
        "servers": [_subject_document(subject) for subject in subjects],
    }


def _subject_document(subject: Subject) -> dict[str, Any]:
    cells = [_cell_document(cell) for cell in subject.cells]
    return {"url": subject.url, "model": subject.model, "version": subject.version, "cells": cells}


def _cell_document(cell: Cell) -> dict[str, Any]:
    return {
        "prompt_tokens": cell.prompt_tokens,
        "concurrency": cell.concurrency,
        "actual_prompt_tokens": cell.actual_prompt_tokens,
        **{figure.key: figure.get(cell) for figure in FIGURES},
        "errors": cell.errors,
        "requests": [
            {
                "ttft_s": record.ttft_s,
                "decode_tok_s": record.decode_tok_s,
                "output_tokens": record.num_output_tokens,
                "prompt_tokens": record.num_prompt_tokens,
                "cached_tokens": record.num_cached_tokens,
                "error": record.error,
            }
            for record in cell.records
        ],
    }


def draw(subjects: Sequence[Subject], grid: Grid, file: Path) -> None:
    """Plot TTFT over prompt lengths, and tokens per second over concurrency, as PNG or SVG. Raises ImportError."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5))
    for place, subject in enumerate(subjects):
        name = f"{'AB'[place]}, " if len(subjects) > 1 else ""
        line = "--" if place else "-"
        for color, number in enumerate(grid.concurrency):
            cells = [cell for cell in subject.cells if cell.concurrency == number and cell.ttft_s is not None]
            points = [cell.prompt_tokens for cell in cells], [cell.ttft_s for cell in cells]
            left.plot(*points, f"o{line}", color=f"C{color}", label=f"{name}{number} at once")
        for color, length in enumerate(grid.prompt_tokens):
            cells = [cell for cell in subject.cells if cell.prompt_tokens == length and cell.total_tok_s is not None]
            points = [cell.concurrency for cell in cells], [cell.total_tok_s for cell in cells]
            right.plot(*points, f"o{line}", color=f"C{color}", label=f"{name}prompts of {length:,}")
    left.set(xlabel="prompt, tokens", ylabel="time to the first token, s", ylim=(0, None))
    right.set(xlabel="requests at once", ylabel="tokens per second, all answers", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.suptitle("   ".join(f"{'AB'[place]}: {s.url} {s.model}" for place, s in enumerate(subjects)), fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
