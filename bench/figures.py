"""From records to figures: the values of each workload, with their labels and units. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from server.client.record import Record, middle, ratio, total_tok_s

Figures = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Figure:
    """A row of the report: `key` names the value among its workload's figures, `scale` turns it into `unit`."""

    workload: str
    key: str
    label: str
    unit: str
    better: Literal["more", "less"]
    scale: float = 1.0
    digits: int = 1

    def shown(self, value: float) -> str:
        """Return the value in its unit, without the unit."""
        return f"{value * self.scale:,.{self.digits}f}"


MS = 1e3
MIB = 1 / 2**20

FIGURES = (
    Figure("single", "decode_tok_s", "one stream, decode", "tok/s", "more"),
    Figure("single", "ttft_s", "one stream, TTFT", "ms", "less", MS),
    Figure("batch8", "tok_s", "8 at once, total", "tok/s", "more"),
    Figure("batch8", "ttft_s", "8 at once, TTFT", "ms", "less", MS),
    Figure("conns256", "num_answered", "256 at once, answered", "", "more", digits=0),
    Figure("fair", "longest_gap_s", "long prompt arrives, longest gap of the others", "ms", "less", MS),
    Figure("fair", "ttft_s", "long prompt, TTFT then", "ms", "less", MS, 0),
    Figure("fair", "ttft_alone_s", "long prompt, TTFT alone", "ms", "less", MS, 0),
    Figure("fair", "ttft_ratio", "long prompt, then / alone", "x", "less", digits=2),
    Figure("prefix", "cold_ttft_s", "shared prefix, TTFT of the first", "ms", "less", MS, 0),
    Figure("prefix", "warm_ttft_s", "shared prefix, TTFT of the next", "ms", "less", MS, 0),
    Figure("memory", "peak_bytes", "peak resident memory", "MiB", "less", MIB, 0),
)


def single_figures(records: Sequence[Record]) -> Figures:
    """Return the figures of sequential requests."""
    answered = [record for record in records if record.is_answered]
    return {
        "decode_tok_s": middle(record.decode_tok_s for record in answered),
        "ttft_s": middle(record.ttft_s for record in answered),
    }


def batch_figures(batches: Sequence[Sequence[Record]]) -> Figures:
    """Return the figures of several batches, each of simultaneous requests."""
    answered = [record for batch in batches for record in batch if record.is_answered]
    return {
        "tok_s": middle(total_tok_s(batch) for batch in batches),
        "ttft_s": middle(record.ttft_s for record in answered),
    }


def conns_figures(records: Sequence[Record]) -> Figures:
    """Return the figures of many simultaneous connections."""
    return {"num_answered": float(sum(record.is_answered for record in records)), "tok_s": total_tok_s(records)}


def fair_figures(streams: Sequence[Record], long: Record, alone: Sequence[Record]) -> Figures:
    """Return the figures of `streams` that decode while `long` arrives, and of such prompts on an idle server."""
    gaps = [gap for stream in streams for gap in stream.gaps(after_s=long.sent_s)]
    alone_s = middle(record.ttft_s for record in alone if record.is_answered)
    then_s = long.ttft_s if long.is_answered else None
    return {
        "longest_gap_s": max(gaps, default=None),
        "ttft_s": then_s,
        "ttft_alone_s": alone_s,
        "ttft_ratio": ratio(then_s, alone_s),
    }


def prefix_figures(records: Sequence[Record]) -> Figures:
    """Return the figures of sequential prompts with the same beginning."""
    cold, *warm = records
    cached = [record.num_cached_tokens for record in warm]
    return {
        "cold_ttft_s": cold.ttft_s if cold.is_answered else None,
        "warm_ttft_s": middle(record.ttft_s for record in warm if record.is_answered),
        "warm_num_cached_tokens": middle(cached),
    }
