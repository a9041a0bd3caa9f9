"""Planned and held bytes of every rank: weights after loading, KV caches while rows decode."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from bench.ranks_engine import measure

_MOST_OFF = 0.01
_LLAMA = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8, "head_dim": 64}
_DEEPSEEK = {"hidden_size": 512, "intermediate_size": 8192, "moe_intermediate_size": 384}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama, tensor": ("llama", "tensor", _LLAMA),
    "deepseek_v3, pipeline": ("deepseek_v3", "pipeline", _DEEPSEEK),
}


def run(options: argparse.Namespace) -> tuple[Any, bool]:
    """Print a line for each rank; return every figure, and whether all are within 1 %."""
    from tests.tiny_models import write_model

    print("| model | rank | weights planned, MB | held, MB | off | KV planned, MB | held, MB | off |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    found: dict[str, list[dict[str, Any]]] = {}
    offs = []
    for name, (kind, parallel, changes) in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            model = write_model(Path(folder) / kind, kind, max_position_embeddings=4096, **changes)
            found[name] = measure(model, parallel, 2, "memory")
        for rank in found[name]:
            cells = [name, str(rank["rank"])]
            for what in ("weights", "kv"):
                planned, held = rank[f"{what}_planned"], rank[f"{what}_held"]
                offs.append(abs(held / planned - 1))
                cells += [f"{planned / 1e6:.2f}", f"{held / 1e6:.2f}", f"{100 * (held / planned - 1):+.2f} %"]
            print(f"| {' | '.join(cells)} |", flush=True)
    return found, bool(offs) and max(offs) <= _MOST_OFF
