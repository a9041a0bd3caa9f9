"""From measurements to rows, a table and a document."""

from __future__ import annotations

import io
import json

from rich.console import Console

from bench.report import build_document, build_rows, build_table, failures
from bench.rounds import Measurement

DECODE = {"decode_tok_s": None, "ttft_s": None}


def single(round_: int, subject: str, tok_s: float | None, beside: str | None = None) -> Measurement:
    return Measurement(round_, subject, "single", {**DECODE, "decode_tok_s": tok_s}, beside)


MEASUREMENTS = [
    single(1, "ours", 90.0),
    single(1, "raw", 100.0, "ours"),
    single(1, "peer", 60.0),
    single(1, "raw", 80.0, "peer"),
    single(2, "ours", 40.0),
    single(2, "raw", 50.0, "ours"),
    Measurement(2, "peer", "conns256", {"num_answered": 70.0}, errors={"ReadError": 185, "HTTP 503": 1}),
]


def test_ours_is_compared_with_the_raw_runs_beside_it() -> None:
    decode = build_rows(MEASUREMENTS, 2)[0]
    assert decode.raw == (100.0, 50.0)
    assert decode.ours_to_raw == (0.9, 0.8)


def test_a_round_without_the_peer_has_no_ratio_to_it() -> None:
    decode = build_rows(MEASUREMENTS, 2)[0]
    assert decode.peer == (60.0, None)
    assert decode.ours_to_peer == (1.5, None)


def test_only_what_was_measured_has_a_row() -> None:
    assert [row.figure.key for row in build_rows(MEASUREMENTS, 2)] == ["decode_tok_s", "num_answered"]
    assert build_rows([single(1, "ours", None)], 1) == []


def test_failures_are_told_by_kind() -> None:
    assert failures(MEASUREMENTS) == ["round 2, peer, conns256: 1 x HTTP 503, 185 x ReadError"]


def shown(measurements: list[Measurement], num_rounds: int) -> str:
    printed = io.StringIO()
    Console(file=printed, width=160).print(build_table(build_rows(measurements, num_rounds)))
    return printed.getvalue()


def test_the_table_shows_the_median_and_each_round() -> None:
    text = shown(MEASUREMENTS, 2)
    for cell in ("65.0 (90.0 40.0)", "75.0 (100.0 50.0)", "60.0 (60.0 -)", "0.850 (0.900 0.800)", "1.500 (1.500 -)"):
        assert cell in text


def test_one_round_is_shown_once() -> None:
    assert "(90.0" not in shown(MEASUREMENTS[:1], 1)
    assert "90.0" in shown(MEASUREMENTS[:1], 1)


def test_the_document_is_json_and_has_everything() -> None:
    rows = build_rows(MEASUREMENTS, 2)
    document = json.loads(json.dumps(build_document(MEASUREMENTS, rows, {"rounds": 2})))
    assert document["settings"] == {"rounds": 2}
    assert len(document["measurements"]) == len(MEASUREMENTS)
    assert document["measurements"][3]["beside"] == "peer"
    assert document["figures"][0]["ours_to_raw"] == {"median": (0.9 + 0.8) / 2, "rounds": [0.9, 0.8]}
    assert {"num_cpus", "mlx", "mlx-lm"} <= set(document["machine"])
