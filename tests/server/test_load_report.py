"""What is said of a loaded model's KV caches, line by line."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from mlx_backend.api.interface import (
    KVCachePart,
    KVCacheReport,
    LoadProgress,
    MemoryReport,
    ModelInfo,
    PrefixCacheReport,
)
from server import load_report
from server.load_report import describe_kv_caches, describe_memory, describe_prefix_cache


def part(name: str, dim: int, bits: int | None, note: str = "", requested: int | None = 8) -> KVCachePart:
    group_size = None if bits is None else 64
    return KVCachePart(
        name=name, num_heads=2, dim=dim, requested_bits=requested, bits=bits, group_size=group_size, note=note
    )


def test_a_line_for_each_kind() -> None:
    latent = KVCacheReport(
        kind="latent",
        num_layers=6,
        parts=(part("latent", 128, 8), part("rope", 32, None, "in full precision: groups of 64 do not divide its 32")),
        start=4,
        bytes_per_token=1000,
        full_bytes_per_token=2000,
    )
    window = KVCacheReport(kind="sliding-window", num_layers=2, window=128, bytes_per_token=64, full_bytes_per_token=64)
    recurrent = KVCacheReport(kind="recurrent", num_layers=3, state_bytes=1000, note="it stays")
    info = ModelInfo(context_limit=1, vocab_size=1, kv_caches=(latent, window, recurrent))
    memory = MemoryReport(limit_bytes=10**10, limit_basis="here", weights_bytes=6 * 10**9, reserve_bytes=10**9)
    assert describe_memory(memory) == (
        "of 10.00 GB (here) 6.00 for weights, 3.00 for KV caches and computation, 1.00 in reserve"
    )
    assert describe_kv_caches(info) == [
        "6 x latent; latent 2 x 128 in 8 bits in groups of 64; rope 2 x 32 in full precision (8 bits requested; in "
        "full precision: groups of 64 do not divide its 32); the first 4 tokens in full precision; 6,000 bytes per "
        "token instead of 12,000 (0.50)",
        "2 x sliding-window of 128 tokens; 128 bytes per token",
        "3 x recurrent; 3,000 bytes per sequence; it stays",
    ]


def test_what_is_kept_of_prompts() -> None:
    kinds = (("sliding-window", "as snapshots"), ("plain", "by the token"), ("recurrent", "as snapshots"))
    kept = PrefixCacheReport(kinds=kinds, chunk_tokens=64, ram_bytes=4 * 10**9)
    assert describe_prefix_cache(kept) == (
        "sliding-window and recurrent as snapshots, plain by the token, in blocks of 64 tokens; "
        "up to 4.00 GB of memory; no folder"
    )
    on_disk = replace(kept, kinds=kinds[1:2], folder="~/kept", max_bytes=50 * 10**9, num_disk_blocks=1234)
    assert describe_prefix_cache(on_disk) == (
        "plain by the token, in blocks of 64 tokens; up to 4.00 GB of memory; "
        "up to 50.00 GB in ~/kept, 1,234 blocks found"
    )
    assert describe_prefix_cache(PrefixCacheReport(reason="it is off")) == "none: it is off"


def test_the_log_tells_how_far_loading_and_warming_up_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reading = [LoadProgress(done_bytes=done * 10**8, total_bytes=10**9) for done in (0, 1, 5, 5, 10)]
    warming = [replace(reading[-1], num_warmed=done, num_to_warm=40) for done in (0, 3, 4, 39)]
    monkeypatch.setattr(load_report, "_steps", lambda model: iter([*reading, *warming]))
    with caplog.at_level(logging.INFO, logger="pippin.load"):
        load_report._log_tenths(None)  # type: ignore[arg-type]
    assert [record.getMessage() for record in caplog.records] == [
        "loading: 10% (0.1 of 1.0 GB)",
        "loading: 50% (0.5 of 1.0 GB)",
        "warming up: 4 of 40 shapes",
        "warming up: 39 of 40 shapes",
    ]
