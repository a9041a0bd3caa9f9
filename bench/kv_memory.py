"""Peak memory of a long prefill: full precision, quantized, and mlx-lm's own quantized cache; a process each.

    python -m bench.kv_memory [--tokens 8192] [--bits 8] [--shape llama] [--step 2048]

MLX's own count of allocated bytes, minus the weights. Unlike the rest of the benchmark it calls the engine's runner in
process: a server's peak includes its libraries.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.checkpoint import SHAPES

SUBJECTS = {
    "ours, full precision": "ours_full",
    "ours, quantized": "ours_quantized",
    "mlx-lm, full precision": "peer_full",
    "mlx-lm, quantized": "peer_quantized",
}


def main() -> None:
    """Measure every subject in its own process and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.kv_memory", description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--shape", choices=[*SHAPES], default="llama")
    parser.add_argument("--step", type=int, default=2048, help="tokens of a prefill step")
    parser.add_argument("--run", nargs=2, metavar=("SUBJECT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        subject, folder = options.run
        print(json.dumps(_SUBJECTS[subject](Path(folder), options)))
        return
    with tempfile.TemporaryDirectory(prefix="pippin-bench-") as name:
        folder = str(Path(name) / options.shape)
        subprocess.run([sys.executable, "-m", "bench.checkpoint", folder, options.shape], check=True)
        found = {label: _measured(subject, folder) for label, subject in SUBJECTS.items()}
    _print(found, options)


def _measured(subject: str, folder: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.kv_memory", *sys.argv[1:], "--run", subject, folder],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def _print(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    table = Table(
        "", "peak, MB", "KV cache, MB", caption=f"{options.shape}, {options.tokens} tokens, {options.bits} bits"
    )
    for label, figures in found.items():
        if "error" in figures:
            table.add_row(label, f"failed: {figures['error']}", "")
        else:
            table.add_row(label, f"{figures['peak_bytes'] / 1e6:,.1f}", f"{figures['kv_bytes'] / 1e6:,.1f}")
    Console(width=140).print(table)


def _ours(folder: Path, options: argparse.Namespace, bits: int | None) -> dict[str, int]:
    import mlx.core as mx

    from mlx_backend.api.interface import EngineConfig, GenerationRequest, KVCacheConfig
    from mlx_backend.core.sequence import build_groups
    from mlx_backend.core.step import StepPlan
    from mlx_backend.runners.mlx import MLXRunner

    runner = MLXRunner(EngineConfig(model_path=str(folder), kv_cache=KVCacheConfig(bits=bits)))
    runner.load(lambda progress: None)
    request = GenerationRequest(request_id="bench", prompt_ids=_prompt(options.tokens), max_tokens=2)
    (prefill,) = build_groups([request])
    (sequence,) = prefill.sequences
    mx.clear_cache()
    base = mx.get_active_memory()
    mx.reset_peak_memory()
    for start in range(0, options.tokens - 1, options.step):
        runner.prefill(prefill.chunk(start, min(start + options.step, options.tokens - 1)))
    kv_bytes = runner.kv_bytes()
    row = sequence.row(key=0)
    plan = StepPlan(new_rows=(row,), decodes=(row.id,), dropped=(prefill.id,))
    runner.start(plan, lambda newest: ())
    runner.collect()
    return {"peak_bytes": mx.get_peak_memory() - base, "kv_bytes": kv_bytes}


def _peer(folder: Path, options: argparse.Namespace, bits: int | None) -> dict[str, int]:
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import make_prompt_cache

    model = load(str(folder))[0]
    caches = make_prompt_cache(model)
    mx.eval(model.parameters())
    mx.clear_cache()
    base = mx.get_active_memory()
    mx.reset_peak_memory()
    steps = generate_step(
        mx.array(_prompt(options.tokens)),
        model,
        max_tokens=1,
        prompt_cache=caches,
        prefill_step_size=options.step,
        kv_bits=bits,
        kv_group_size=64,
        quantized_kv_start=0,  # begins at 5,000 tokens by default
    )
    for token, _ in steps:
        assert token >= 0
    return {
        "peak_bytes": mx.get_peak_memory() - base,
        "kv_bytes": sum(cache.nbytes for cache in caches),
    }


def _prompt(num_tokens: int) -> tuple[int, ...]:
    return tuple(7 + 13 * i % 3000 for i in range(num_tokens))


_SUBJECTS: dict[str, Callable[[Path, argparse.Namespace], dict[str, int]]] = {
    "ours_full": lambda folder, options: _ours(folder, options, None),
    "ours_quantized": lambda folder, options: _ours(folder, options, options.bits),
    "peer_full": lambda folder, options: _peer(folder, options, None),
    "peer_quantized": lambda folder, options: _peer(folder, options, options.bits),
}


if __name__ == "__main__":
    main()
