"""Greedy output of the engine against mlx-lm's models on the CPU, for each kind of KV cache: one stream, and four."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlx_backend.acceptance import tiny
from mlx_backend.acceptance.checks import Check, Options, Outcome, divergence
from mlx_backend.acceptance.streams import generate, running
from mlx_backend.api.interface import EngineConfig

BATCH = 4
_NUM_TOKENS = 24
_TIE = 0.02
"""Gap between the two highest logits below which another order on another device is no fault."""


def run(options: Options, report: Callable[[str], None]) -> Outcome:
    """Compare every kind of model, with a check for each."""
    figures, checks = {}, []
    for kind in tiny.KINDS:
        report(kind)
        found = asyncio.run(_compare(kind))
        figures[kind] = found
        checks += [Check(name=f"{kind}, batch {size}", measured=found[str(size)]["num_wrong"], high=0, unit="streams")
                   for size in (1, BATCH)]  # fmt: skip
    return Outcome(figures=figures, checks=checks)


async def _compare(kind: str) -> dict[str, Any]:
    device = mx.default_device()
    prompts = [_prompt(row) for row in range(BATCH)]
    mx.set_default_device(mx.cpu)
    try:
        model = tiny.build(kind)
        references = [_reference(model, prompt) for prompt in prompts]
        with tempfile.TemporaryDirectory(prefix="pippin-acceptance-") as name:
            folder = tiny.write(model, kind, Path(name) / "model")
            mx.set_default_device(device)
            async with running(EngineConfig(model_path=str(folder))) as engine:
                single = [await generate(engine, [prompts[0]], _NUM_TOKENS)]
                batched = await generate(engine, prompts, _NUM_TOKENS)
    finally:
        mx.set_default_device(device)
    ones = [stream.token_ids for streams in single for stream in streams]
    return {
        "1": _judge(references[:1], ones),
        str(BATCH): _judge(references, [stream.token_ids for stream in batched]),
    }


def _prompt(row: int) -> tuple[int, ...]:
    return tuple(1 + (7 * i + 31 * row) % (tiny.VOCAB_SIZE - 1) for i in range(20 + 9 * row))


def _judge(references: Sequence[tuple[list[int], list[float]]], outputs: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return counts of all streams and of wrong ones, with place and gap of each difference; a tie is not wrong."""
    differences = []
    for (tokens, gaps), output in zip(references, outputs, strict=True):
        place = divergence(tokens, output)
        if place is not None:
            differences.append({"place": place, "gap": gaps[min(place, len(gaps) - 1)]})
    num_wrong = sum(each["gap"] > _TIE for each in differences)
    return {"num_streams": len(outputs), "num_wrong": num_wrong, "differences": differences}


def _reference(model: Any, prompt: Sequence[int]) -> tuple[list[int], list[float]]:
    """Return (tokens, gap between the two highest logits at each) of mlx-lm's model alone, greedy."""
    caches, inputs = make_prompt_cache(model), list(prompt)
    tokens: list[int] = []
    gaps: list[float] = []
    for _ in range(_NUM_TOKENS):
        logits = model(mx.array([inputs]), cache=caches)[0, -1].astype(mx.float32)
        order = mx.argsort(-logits)
        tokens.append(int(order[0].item()))
        gaps.append(float((logits[order[0]] - logits[order[1]]).item()))
        inputs = tokens[-1:]
    return tokens, gaps
