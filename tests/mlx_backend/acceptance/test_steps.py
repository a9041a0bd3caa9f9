"""Steps of the acceptance kit that compute, on a CPU, as small as they get; one as a process, as the kit runs it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import pytest

from mlx_backend.acceptance import attention, limits, parity, soak, speed, tiny
from mlx_backend.acceptance.checks import Options, Outcome
from mlx_backend.kv_cache import spec
from server import pocket

pytestmark = pytest.mark.mlx

SMALL = Options(
    model=str(pocket.folder()), contexts=(64,), steps=(32, 64), idles_s=(0.0, 0.0), batches=(1, 2), num_tokens=2
)


def run(step: Callable[..., Outcome], options: Options = SMALL) -> dict[str, Any]:
    with ThreadPoolExecutor(1) as thread:  # a runner takes the streams of its thread with it
        found = thread.submit(step, options, lambda text: None).result().to_json()
    assert all(check["is_kept"] for check in found["checks"]), found
    figures: dict[str, Any] = json.loads(json.dumps(found["figures"]))
    return figures


def test_parity_of_a_model_and_what_a_wrong_token_is() -> None:
    found = asyncio.run(parity._compare("latent"))
    assert [(size, each["num_streams"], each["num_wrong"]) for size, each in found.items()] == [
        ("1", 1, 0),
        ("4", 4, 0),
    ]
    reference = ([5, 6, 7], [1.0, 0.001, 1.0])
    assert parity._judge([reference], [[5, 6, 7]])["differences"] == []
    assert parity._judge([reference], [[5, 9, 9]])["num_wrong"] == 0  # a tie
    assert parity._judge([reference], [[9, 6, 7]])["num_wrong"] == 1


def test_every_kind_of_cache_has_a_model_in_the_kit() -> None:
    assert set(spec.KINDS) <= {name.partition(",")[0] for name in tiny.KINDS}


@pytest.mark.parametrize("mask", attention.MASKS)
def test_fused_attention_and_the_fallback_compute_the_same(mask: str) -> None:
    query, key = (mx.random.normal((1, 2, rows, 64), key=mx.random.key(rows)) for rows in (16, 24))
    given = {"none": None, "causal": "causal", "array": mx.tri(16, 24).astype(mx.float32)}[mask]
    assert mx.allclose(attention._fast(query, key, given), attention._plain(query, key, given), atol=1e-4).item()


def test_loading_prefill_and_decoding() -> None:
    loaded = run(speed.load)
    assert loaded["weights_bytes"] <= loaded["file_bytes"] <= loaded["peak_bytes"] * 1.1
    assert [(row["context"], row["step"]) for row in run(speed.prefill)["rows"]] == [(64, 32), (64, 64)]
    rows = run(speed.decode)["rows"]
    assert [(row["context"], row["idle_s"]) for row in rows] == [(64, 0.0), (64, 0.0)]
    assert all(row["tok_s"] > 0 for row in rows)


def test_streams_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_PROMPT_TOKENS", 32)
    rows = run(speed.batch)["rows"]
    assert [(row["streams"], len(row["ttft_s"])) for row in rows] == [(1, 1), (2, 2)]


def test_what_a_cpu_cannot_do_is_said() -> None:
    assert "needs Metal" in str(limits.run(SMALL, print).skipped)
    assert "--soak-minutes" in str(soak.run(SMALL, print).skipped)


def test_a_soak_is_judged_by_its_ends() -> None:
    steady = [(float(i), 10.0, 10**9) for i in range(10)]
    assert [check.is_kept for check in soak._judge(steady, 0, 5).checks] == [True, True, True]
    slow = [*steady[:-2], (9.0, 5.0, 3 * 10**9), (10.0, 5.0, 3 * 10**9)]
    assert [check.is_kept for check in soak._judge(slow, 1, 5).checks] == [False, False, False]


def test_a_step_as_a_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlx_backend.acceptance", "device"],
        input=json.dumps({"model": "none"}),
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = map(json.loads, done.stdout.splitlines())
    assert line["outcome"]["checks"][0]["is_kept"]
