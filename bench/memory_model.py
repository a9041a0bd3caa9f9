"""The memory model against MLX's allocations: weights, KV caches, and the peak of a prefill. In process.

python -m bench.memory_model [--shapes llama,deepseek_v3] [--lengths 1024,4096,8192] [--steps 256,512,1024]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
from rich.console import Console
from rich.table import Table

from bench.checkpoint import SHAPES
from mlx_backend.api.interface import EngineConfig, GenerationRequest, KVCacheConfig
from mlx_backend.core.sequence import build_groups
from mlx_backend.core.step import StepPlan
from mlx_backend.planning.memory import kv_bytes, prefill_bytes
from mlx_backend.runners.mlx import MLXRunner


def main() -> None:
    """Print predicted and measured bytes for every shape, length and step."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory_model", description=__doc__)
    parser.add_argument("--shapes", default="llama,deepseek_v3", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--lengths", default="1024,4096,8192")
    parser.add_argument("--steps", default="256,512,1024")
    parser.add_argument("--kv-bits", type=int)
    options = parser.parse_args()
    lengths, steps = (list(map(int, text.split(","))) for text in (options.lengths, options.steps))
    table = Table("shape", "tokens", "step", "weights", "KV, MB", "predicted", "peak, MB", "predicted", "error")
    for column in table.columns[1:]:
        column.justify = "right"
    with tempfile.TemporaryDirectory(prefix="pippin-bench-") as name:
        for shape in options.shapes.split(","):
            folder = Path(name) / shape
            subprocess.run([sys.executable, "-m", "bench.checkpoint", str(folder), shape], check=True)
            for row in _rows(folder, shape, lengths, steps, options.kv_bits):
                table.add_row(*row)
    Console(width=120).print(table)


def _rows(folder: Path, shape: str, lengths: list[int], steps: list[int], bits: int | None) -> list[list[str]]:
    config = EngineConfig(model_path=str(folder), kv_cache=KVCacheConfig(bits=bits))
    runner = MLXRunner(config)
    info = runner.load(lambda progress: None)
    assert runner.budget is not None and info.memory is not None
    exact = "exact" if info.memory.weights_bytes == info.weights_bytes else "WRONG"
    found = []
    for length in lengths:
        for step in steps:
            kv, peak = _measured(runner, length, step)
            planned_kv = kv_bytes(runner.budget.plans, length)
            transient = prefill_bytes(
                runner.budget.shape, runner.budget.plans, step, length, has_fused=mx.default_device() != mx.cpu
            )
            predicted = planned_kv + transient
            whole = info.weights_bytes + predicted, info.weights_bytes + peak
            cells = [_mb(kv), _mb(planned_kv), _mb(peak), _mb(predicted), f"{whole[0] / whole[1] - 1:+.1%}"]
            found.append([shape, str(length), str(step), exact, *cells])
    return found


def _measured(runner: MLXRunner, length: int, step: int) -> tuple[int, int]:
    """Return (bytes of the KV cache, peak over the weights) of a prefill of `length` tokens."""
    prompt = tuple(7 + 13 * i % 3000 for i in range(length + 1))
    (prefill,) = build_groups([GenerationRequest(request_id="bench", prompt_ids=prompt, max_tokens=2)])
    runner.idle()
    base = mx.get_active_memory()
    mx.reset_peak_memory()
    for start in range(0, length, step):
        runner.prefill(prefill.chunk(start, min(start + step, length)))
    held = runner.kv_bytes(), mx.get_peak_memory() - base
    runner.start(StepPlan(dropped=(prefill.id,)), lambda newest: ())
    return held


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f}"


if __name__ == "__main__":
    main()
