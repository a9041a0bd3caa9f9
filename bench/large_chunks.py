"""The computation of prompts: chunk shapes, waits within a chunk, several prompts in one pass.

A part of `python -m bench.large`. The former ways are kept here as the reference: eight sizes per octave, spare buffers
freed after every chunk, a wait for every few heads of quantized columns, one prompt after the other. Best of several.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from mlx_backend.planning import chunk_sizes

MOST = 2048
NUM_PROMPTS = 10_000
CONTEXTS = (1024, 3072)
STEP = 64
HEAD_DIM = 64
SHADOW_BYTES = 1 << 19
"""Smaller than the engine's bound in proportion to these models: some heads at a time."""
TOGETHER = ((16, 16), (16, 64))
SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": HEAD_DIM,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 16_384,
    "tie_word_embeddings": True,
    "eos_token_id": 0,
}
EXPERTS: dict[str, Any] = {
    **SHAPE,
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 128,
    "num_experts": 64,
    "num_experts_per_tok": 4,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}


def print_chunks() -> None:
    """Print a table for each part."""
    _print_shapes()
    with TemporaryDirectory(prefix="pippin-bench-") as name:
        _print_waits(_write(Path(name) / "dense", SHAPE))
    _print_together()


# ---- shapes ----


def _eighths(num_tokens: int) -> int:
    step = max(1, (1 << num_tokens.bit_length() >> 1) // 8)
    return num_tokens - num_tokens % step


def _print_shapes() -> None:
    """Print chunk sizes. A chunk beside decodes varies with measured speed: here by a third around 600 tokens."""
    ways: dict[str, tuple[Callable[[int], int], Callable[[int], int]]] = {
        "eight sizes an octave": (_eighths, lambda left: left),
        "the ladder": (chunk_sizes.round_down, lambda left: left),
        "the ladder, padded": (chunk_sizes.round_down, lambda left: chunk_sizes.padded(left, MOST)),
    }
    table = Table("10,000 prompts of 2 to 8,000 tokens", "beside decodes", "sizes", "(size, position)", "computed more")
    for beside in (False, True):
        for name, (cut, pad) in ways.items():
            sizes, places, num_computed, num_tokens = set[int](), set[tuple[int, int]](), 0, 0
            source = random.Random(3)
            for _ in range(NUM_PROMPTS):
                length, start = source.randrange(1, 8000), 0
                num_tokens += length
                while start < length:
                    most = cut(source.randrange(400, 800)) if beside else MOST
                    size = pad(length - start) if length - start < most else most
                    sizes.add(size)
                    places.add((size, start))
                    num_computed += size
                    start += size
            more = num_computed / num_tokens - 1
            table.add_row(name, "yes" if beside else "no", f"{len(sizes):,}", f"{len(places):,}", f"{more:.1%}")
    Console(width=120).print(table)


# ---- waits ----


def _print_waits(folder: Path) -> None:
    import mlx.core as mx

    table = Table("KV", "way", "tokens before", "waits", "clears", "ms", "peak, MB", "planned, MB")
    for column in table.columns[2:]:
        column.justify = "right"
    for bits in (None, 8):
        runner = _runner(folder, bits)
        for context in CONTEXTS:
            for way, measured in _chunk(runner, context).items():
                cells = (f"{context:,}", f"{measured.waits}", f"{measured.clears}", f"{1e3 * measured.best_s:.0f}")
                memory = f"{measured.peak / 1e6:.1f}", f"{_planned(runner, context) / 1e6:.1f}"
                table.add_row(f"{bits} bits" if bits else "full", way, *cells, *memory)
        runner.idle()
        mx.clear_cache()
    Console(width=120).print(table)


@dataclass
class _Measured:
    waits: int = 0
    clears: int = 0
    best_s: float = float("inf")
    peak: int = 0


def _chunk(runner: Any, context: int) -> dict[str, _Measured]:
    """Compute the chunk after `context` tokens repeatedly, in either way."""
    import mlx.core as mx

    from mlx_backend.api.interface import GenerationRequest
    from mlx_backend.core.sequence import build_groups
    from mlx_backend.core.step import StepPlan

    runner.idle()
    base = mx.get_active_memory()
    prompt_ids = tuple(7 + 13 * i % 3000 for i in range(context + STEP + 1))
    (group,) = build_groups([GenerationRequest(request_id="bench", prompt_ids=prompt_ids, max_tokens=2)])
    for start in range(0, context, 1024):
        runner.prefill(group.chunk(start, start + 1024))
    measured, previous = {"former": _Measured(), "now": _Measured()}, ""
    with _small_shadows():
        for way in 2 * ["former"] + 5 * ["now"] + 5 * ["former"]:  # timed only after the same way, to own its leftovers
            with _former() if way == "former" else contextlib.nullcontext(), _counting() as counts:
                mx.reset_peak_memory()
                began = time.perf_counter()
                runner.prefill(group.chunk(context, context + STEP))
                took_s = time.perf_counter() - began
            found = measured[way]
            found.waits, found.clears = counts["eval"] + counts["synchronize"], counts["clear_cache"]
            found.best_s = min(found.best_s, took_s if way == previous else found.best_s)
            previous = way
            found.peak = max(found.peak, mx.get_peak_memory() - base)
            for cache in runner._prompts[group.id].caches:
                cache.offset = context
    runner.start(StepPlan(dropped=(group.id,)), lambda newest: ())
    return measured


def _planned(runner: Any, context: int) -> int:
    from mlx_backend.planning.memory import kv_bytes, prefill_bytes
    from mlx_backend.runners.device import has_fused_attention

    shape, plans, end = runner.budget.shape, runner.budget.plans, context + STEP
    return kv_bytes(plans, end) + prefill_bytes(shape, plans, STEP, end, has_fused=has_fused_attention())


@contextlib.contextmanager
def _counting() -> Iterator[dict[str, int]]:
    """Count the waits for MLX, and the frees of its spare buffers."""
    import mlx.core as mx

    counts = dict.fromkeys(("eval", "synchronize", "clear_cache"), 0)
    real = {name: getattr(mx, name) for name in counts}

    def counted(name: str) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            counts[name] += 1
            return real[name](*given)

        return call

    for name in counts:
        setattr(mx, name, counted(name))
    try:
        yield counts
    finally:
        for name, function in real.items():
            setattr(mx, name, function)


@contextlib.contextmanager
def _small_shadows() -> Iterator[None]:
    from mlx_backend.kv_cache import attention

    former, attention._MAX_SHADOW_BYTES = attention._MAX_SHADOW_BYTES, SHADOW_BYTES
    yield
    attention._MAX_SHADOW_BYTES = former


@contextlib.contextmanager
def _former() -> Iterator[None]:
    """Wait for every few heads, and free spare buffers with the chunk."""
    import mlx.core as mx

    from mlx_backend.kv_cache import attention
    from mlx_backend.runners.mlx import MLXRunner

    after, compute = attention._after, MLXRunner._compute

    def waiting(part: Any, outs: list[Any]) -> Any:
        if outs and part is not waited[0]:
            mx.eval(outs)
        waited[0] = part  # once for keys and values
        return part

    def clearing(self: Any, chunk: Any, caches: Any) -> None:
        compute(self, chunk, caches)
        mx.clear_cache()

    waited: list[Any] = [None]
    attention._after, MLXRunner._compute = waiting, clearing  # type: ignore[method-assign]
    try:
        yield
    finally:
        attention._after, MLXRunner._compute = after, compute  # type: ignore[method-assign]


# ---- together ----


def _print_together() -> None:
    """Print the times of several prompts, sequentially and in one pass with batch caches, not split here."""
    import mlx.core as mx

    table = Table("model", "prompts x tokens", "apart, ms", "together, ms", "ratio")
    with TemporaryDirectory(prefix="pippin-bench-") as name:
        for kind, shape in (("dense", SHAPE), ("experts", EXPERTS)):
            runner = _runner(_write(Path(name) / kind, shape), None)
            model = runner._model
            for count, length in TOGETHER:
                tokens = mx.random.randint(1, 4000, (count, length))

                apart_s = _best(partial(_compute, model, [prompt[None] for prompt in tokens]))
                together_s = _best(partial(_compute, model, [tokens]))
                cells = f"{1e3 * apart_s:.0f}", f"{1e3 * together_s:.0f}", f"{apart_s / together_s:.2f}"
                table.add_row(kind, f"{count} x {length}", *cells)
    Console(width=120).print(table)


def _compute(model: Any, inputs: list[Any]) -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    for each in inputs:
        caches = make_prompt_cache(model)
        model(each, cache=caches)
        mx.eval([cache.state for cache in caches])


def _best(call: Callable[[], None]) -> float:
    call()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def _runner(folder: Path, bits: int | None) -> Any:
    from mlx_backend.api.interface import EngineConfig, KVCacheConfig
    from mlx_backend.runners.mlx import MLXRunner

    runner = MLXRunner(EngineConfig(model_path=str(folder), kv_cache=KVCacheConfig(bits=bits)))
    runner.load(lambda progress: None)
    return runner


def _write(folder: Path, shape: dict[str, Any]) -> Path:
    """Write a checkpoint of random weights."""
    import importlib
    import json

    import mlx.core as mx
    from mlx.utils import tree_flatten

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    module = importlib.import_module(f"mlx_lm.models.{shape['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(shape))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return folder
