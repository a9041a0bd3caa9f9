"""Processor time of a decode step with 0, 1 and 4 LoRA adapters, beside the model without any, in one process.

    python -m bench.adapters [--model FOLDER] [--rank 16] [--rows 1,8] [--tokens 64] [--rounds 5]

Random adapters on every linear layer outside embeddings and experts, as mlx-lm trains them. All engines are loaded at
once, and take turns; the first round is not counted. Rows of 4 adapters are as many of each as there can be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import aclosing
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mlx_backend.api.interface import (
    AdapterConfig,
    Engine,
    EngineConfig,
    GenerationRequest,
    PrefixCacheConfig,
    SamplingParams,
)
from mlx_backend.factory import create_engine

NUM_ADAPTERS = 4
CASES = {"the model alone": None, "4 loaded, none used": 0, "1 used": 1, "4 used": NUM_ADAPTERS}
"""Adapters among the rows of a batch; None: the engine has none."""


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.adapters", description=__doc__)
    parser.add_argument("--model", default=None, help="folder; left out: the model that ships with the server")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", default="1,8")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = Path(options.model) if options.model else Path("server/pocket")
    with tempfile.TemporaryDirectory(prefix="pippin-bench-") as folder:
        adapters = tuple(
            AdapterConfig(str(number), str(_write_adapter(Path(folder) / str(number), model, options.rank, number)))
            for number in range(NUM_ADAPTERS)
        )
        asyncio.run(_measure(model, adapters, options))


def _write_adapter(folder: Path, model: Path, rank: int, seed: int) -> Path:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.utils import load_model

    mx.random.seed(seed)
    tensors = {}
    for path, layer in load_model(model)[0].named_modules():
        if type(layer) in (nn.Linear, nn.QuantizedLinear):
            num_out, num_in = layer.weight.shape
            num_in = num_in * 32 // layer.bits if isinstance(layer, nn.QuantizedLinear) else num_in
            tensors[f"{path}.lora_a"] = 0.01 * mx.random.normal((num_in, rank))
            tensors[f"{path}.lora_b"] = 0.01 * mx.random.normal((rank, num_out))
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": {"rank": rank, "scale": 1.0}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


async def _measure(model: Path, adapters: tuple[AdapterConfig, ...], options: argparse.Namespace) -> None:
    cache = PrefixCacheConfig(enabled=False)
    alone = await _start(EngineConfig(model_path=str(model), prefix_cache=cache))
    beside = await _start(EngineConfig(model_path=str(model), prefix_cache=cache, adapters=adapters))
    found: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for turn in range(options.rounds + 1):
        for rows in map(int, options.rows.split(",")):
            for case, number in CASES.items():
                engine = alone if number is None else beside
                took_s = await _step_s(engine, rows, number or 0, options.tokens)
                if turn:
                    found[case, rows].append(took_s)
    for engine in (alone, beside):
        engine.close()
    _print(found, options)


async def _start(config: EngineConfig) -> Engine:
    engine = create_engine(config)
    engine.start()
    while engine.model_info is None:
        if engine.failure is not None:
            raise engine.failure
        await asyncio.sleep(0.01)
    return engine


async def _step_s(engine: Engine, rows: int, num_adapters: int, num_tokens: int) -> float:
    """Seconds of processor time of the whole process for each decode step of so many rows."""
    requests = [
        GenerationRequest(
            request_id=str(row),
            prompt_ids=(7, 8, 9),
            max_tokens=num_tokens,
            sampling=SamplingParams(temperature=0),
            adapter=str(row % num_adapters) if num_adapters else "",
        )
        for row in range(rows)
    ]
    before, began = engine.stats().num_steps, time.process_time()
    async with aclosing(engine.submit(requests)) as stream:
        async for _ in stream:
            pass
    return (time.process_time() - began) / (engine.stats().num_steps - before)


def _print(found: dict[tuple[str, int], list[float]], options: argparse.Namespace) -> None:
    table = Table(title=f"processor time of a decode step, ms; rank {options.rank}; median of {options.rounds} rounds")
    table.add_column("adapters")
    sizes = list(dict.fromkeys(rows for _, rows in found))
    for rows in sizes:
        table.add_column(f"{rows} row{'s' if rows > 1 else ''}", justify="right")
    for case in CASES:
        cells = []
        for rows in sizes:
            took, base = statistics.median(found[case, rows]), statistics.median(found["the model alone", rows])
            cells.append(f"{1000 * took:.2f} ({took / base:.2f} x)")
        table.add_row(case, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
