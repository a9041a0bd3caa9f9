"""The metrics of a model that several ranks share, its table in `pippin ps`, and its line in the log."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from mlx_backend.api.interface import EngineStats, ModelInfo, RankInfo, RanksInfo, RankStats
from server.commands.ps import _ranks_table
from server.dialects.admin.routes import _encode_rank
from server.dialects.metrics.ranks import rank_families
from server.load_report import describe_ranks

STATS = EngineStats(
    ranks=tuple(
        RankStats(
            rank=rank,
            kv_bytes=10 + rank,
            active_bytes=500_000_000 + rank,
            peak_bytes=900 + rank,
            round_trip_s=None if rank == 0 else 0.25,
            progress_age_s=3.0 + rank,
            is_busy=rank == 1,
        )
        for rank in range(2)
    )
)
INFO = ModelInfo(
    context_limit=64,
    vocab_size=9,
    ranks=RanksInfo(
        parallel="pipeline",
        link="loopback",
        ranks=tuple(
            RankInfo(
                rank=rank,
                num_layers=31 - rank,
                weights_bytes=300_000_000,
                kv_bytes_per_token=4,
                limit_bytes=None if rank == 0 else 800,
                free_bytes=None,
            )
            for rank in range(2)
        ),
    ),
)


def read(stats: EngineStats, info: ModelInfo | None) -> dict[tuple[str, str, str], float]:
    samples = [sample for family in rank_families([("m", stats, info)]) for sample in family.samples]
    return {(each.name, each.labels["rank"], each.labels.get("kind", "")): each.value for each in samples}


def test_each_rank_has_its_series_and_what_is_not_known_has_none() -> None:
    found = read(STATS, INFO)
    assert found == {
        **{("pippin_rank_info", str(rank), ""): 1 for rank in range(2)},
        **{("pippin_rank_memory_bytes", str(rank), "weights"): 300_000_000 for rank in range(2)},
        **{("pippin_rank_memory_bytes", str(rank), "kv"): 10 + rank for rank in range(2)},
        **{("pippin_rank_memory_bytes", str(rank), "active"): 500_000_000 + rank for rank in range(2)},
        **{("pippin_rank_memory_bytes", str(rank), "peak"): 900 + rank for rank in range(2)},
        **{("pippin_rank_progress_age_seconds", str(rank), ""): 3 + rank for rank in range(2)},
        **{("pippin_rank_busy", str(rank), ""): rank for rank in range(2)},
        ("pippin_rank_memory_bytes", "1", "limit"): 800,
        ("pippin_rank_round_trip_seconds", "1", ""): 0.25,
    }


def test_one_process_has_no_series() -> None:
    assert read(EngineStats(), ModelInfo(context_limit=64, vocab_size=9)) == {}
    assert read(EngineStats(), None) == {}


def test_the_log_says_what_each_rank_holds() -> None:
    assert INFO.ranks is not None
    assert describe_ranks(INFO.ranks) == (
        "2 over loopback, pipeline: rank 0 31 layers, 300.0 MB; rank 1 30 layers, 300.0 MB; below: the rank with "
        "the least room"
    )


def test_the_table_says_what_each_rank_holds_and_whether_it_answers() -> None:
    ranks = [_encode_rank(each, INFO).model_dump() for each in STATS.ranks]
    text = StringIO()
    Console(file=text, width=160).print(_ranks_table({"id": "m", "ranks": ranks}))
    rows = [line.split() for line in text.getvalue().splitlines()]
    assert rows[1] == ["0", "31", "0.30", "GB", "-", "0.50", "GB", "0.00", "MB", "-", "3.0", "s,", "idle"]
    assert rows[2][-5:] == ["250.0", "ms", "4.0", "s,", "busy"]
    assert rows[2][1] == "30"
