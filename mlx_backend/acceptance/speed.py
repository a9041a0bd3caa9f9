"""Loading, prefill, decoding and batches of one model: figures beside the memory and speed models."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from mlx_backend.acceptance.checks import Check, Options, Outcome, check_peak, check_speed, describe_times
from mlx_backend.acceptance.streams import generate, running
from mlx_backend.api.interface import EngineConfig, MemoryConfig, ModelInfo, SamplingParams
from mlx_backend.core.step import Chunk, NewRow, StepPlan
from mlx_backend.planning.admission import Budget
from mlx_backend.planning.machines import this_machine
from mlx_backend.planning.macos import wired_bytes
from mlx_backend.planning.memory import kv_bytes, prefill_bytes
from mlx_backend.planning.planner import decode_speed, prefill_speed
from mlx_backend.runners import device
from mlx_backend.runners.mlx import MLXRunner

_MOST_EVAL_S = 2.0
"""A longer command buffer may be ended by the watchdog if a display is active (mlx#3267)."""
_PROMPT_TOKENS = 256
_ids = itertools.count(1)


def _config(options: Options) -> EngineConfig:
    wired = cast(Any, options.wired)
    return EngineConfig(model_path=options.model, memory=replace(MemoryConfig(), wired=wired))


@contextmanager
def _loaded(options: Options) -> Iterator[tuple[MLXRunner, ModelInfo]]:
    runner = MLXRunner(_config(options))
    try:
        yield runner, runner.load(lambda progress: None)
    finally:
        runner.close()


def load(options: Options, report: Callable[[str], None]) -> Outcome:
    """Read the weights: GB/s, peak, and the machine's wired bytes before, while loaded, and after."""
    size = sum(path.stat().st_size for path in Path(options.model).glob("*.safetensors"))
    before, began_at = wired_bytes(), time.perf_counter()
    with _loaded(options) as (_, info):
        seconds, peak, loaded = time.perf_counter() - began_at, mx.get_peak_memory(), wired_bytes()
        memory = info.memory
        figures = {
            "seconds": seconds,
            "gb_per_s": size / 1e9 / seconds,
            "file_bytes": size,
            "weights_bytes": info.weights_bytes,
            "peak_bytes": peak,
            "is_batched": info.is_batched,
            "unbatched_reason": info.unbatched_reason,
            "context_limit": info.context_limit,
            "wired_policy_bytes": 0 if memory is None else memory.wired_bytes,
            "wired_reason": "" if memory is None else memory.wired_reason,
        }
        weights = Check(
            name="weights in memory",
            measured=mx.get_active_memory(),
            low=0.99 * info.weights_bytes,
            high=1.05 * info.weights_bytes + 64e6,
            unit="bytes",
            predicted=info.weights_bytes,
        )
    return Outcome(figures=figures | {"wired_bytes": [before, loaded, wired_bytes()]}, checks=[weights])


def prefill(options: Options, report: Callable[[str], None]) -> Outcome:
    """Prefill every context with every step: tok/s, time of an eval, and the peak beside our memory model."""
    rows, checks = [], []
    machine = this_machine()
    with _loaded(options) as (runner, info):
        budget, is_gpu = _budget(runner), device.has_fused_attention()
        _prefill_once(runner, _prompt(64), 64)  # kernels are compiled at first use
        for context in _within(options.contexts, info):
            for step in (step for step in options.steps if step <= context):
                report(f"{context} tokens, {step} at a time")
                seconds, peak = _prefill_once(runner, _prompt(context), step)
                predicted = kv_bytes(budget.plans, context) + prefill_bytes(
                    budget.shape, budget.plans, step, context, has_fused=is_gpu
                )
                name, speed = f"{context} tokens, step {step}", context / sum(seconds)
                rows.append(
                    {
                        "context": context,
                        "step": step,
                        "tok_s": speed,
                        **describe_times(seconds),
                        "peak_bytes": peak,
                        "predicted_peak_bytes": predicted,
                    }
                )
                checks.append(check_peak(f"{name}: peak", peak, predicted))
                if is_gpu:
                    checks.append(
                        Check(name=f"{name}: longest eval", measured=max(seconds), high=_MOST_EVAL_S, unit="s")
                    )
                if machine is not None and step == max(options.steps):
                    checks += check_speed(f"{name}: prefill", speed, prefill_speed(budget.shape, machine, context))
    return Outcome(figures={"rows": rows}, checks=checks)


def decode(options: Options, report: Callable[[str], None]) -> Outcome:
    """Decode at every context, after every idle time: the first steps, the median, tok/s."""
    rows, checks = [], []
    machine = this_machine()
    with _loaded(options) as (runner, info):
        budget = _budget(runner)
        for context in _within(options.contexts, info):
            report(f"{context} tokens")
            num_tokens = min(options.num_tokens * len(options.idles_s), info.context_limit - context)
            decoding = _Decoding(runner, _prompt(context), num_tokens, min(max(options.steps), context))
            for idle_s in options.idles_s:
                time.sleep(idle_s)
                seconds = decoding.run(num_tokens // len(options.idles_s))
                speed = 1 / statistics.median(seconds)
                rows.append({"context": context, "idle_s": idle_s, "tok_s": speed, **describe_times(seconds)})
                if machine is not None and idle_s == 0:
                    estimate = decode_speed(budget.shape, budget.plans, machine, context)
                    checks += check_speed(f"{context} tokens: decode", speed, estimate)
            decoding.end()
    return Outcome(figures={"rows": rows}, checks=checks)


def short_decode(options: Options, report: Callable[[str], None]) -> Outcome:
    """Decode at the shortest context only, for comparison between two processes."""
    with _loaded(options) as (runner, info):
        context = min(_within(options.contexts, info))
        decoding = _Decoding(runner, _prompt(context), 4 * options.num_tokens, context)
        seconds = decoding.run(4 * options.num_tokens)
        decoding.end()
        figures = {
            "context": context,
            "tok_s": 1 / statistics.median(seconds),
            **describe_times(seconds),
            "peak_bytes": mx.get_peak_memory(),
            "wired_bytes": wired_bytes(),
            "wired_reason": "" if info.memory is None else info.memory.wired_reason,
        }
    return Outcome(figures=figures)


def batch(options: Options, report: Callable[[str], None]) -> Outcome:
    """Run several streams at once through the whole engine: tok/s in total and per stream, time to the first token."""
    return asyncio.run(_batch(options, report))


async def _batch(options: Options, report: Callable[[str], None]) -> Outcome:
    rows = []
    async with running(_config(options)) as engine:
        await generate(engine, [_prompt(_PROMPT_TOKENS)], 2)
        for size in options.batches:
            report(f"{size} streams")
            prompts = [_prompt(_PROMPT_TOKENS, salt=row + 1) for row in range(size)]
            streams = await generate(engine, prompts, 4 * options.num_tokens)
            end_s = max(stream.stamps_s[-1] for stream in streams)
            rows.append(
                {
                    "streams": size,
                    "total_tok_s": sum(len(stream.token_ids) for stream in streams) / end_s,
                    "stream_tok_s": statistics.median(stream.tokens_per_s for stream in streams),
                    "ttft_s": [stream.ttft_s for stream in streams],
                }
            )
    return Outcome(figures={"prompt_tokens": _PROMPT_TOKENS, "rows": rows})


# --- the runner, called as the engine calls it


def _budget(runner: MLXRunner) -> Budget:
    if runner.budget is None:
        raise ValueError("the memory of this machine is not known")
    return runner.budget


def _within(contexts: tuple[int, ...], info: ModelInfo) -> list[int]:
    """Return the contexts that the model supports with room for an answer."""
    return [context for context in contexts if context + 256 <= info.context_limit] or [info.context_limit // 2]


def _prompt(num_tokens: int, salt: int = 0) -> tuple[int, ...]:
    return tuple(7 + (13 * i + 101 * salt) % 200 for i in range(num_tokens))


def _chunks(prompt: int, ids: tuple[int, ...], num_tokens: int, step: int) -> Iterator[Chunk]:
    for start in range(0, num_tokens, step):
        stop = min(start + step, num_tokens)
        following = ids[stop] if stop < len(ids) else None
        yield Chunk(
            prompt=prompt, start=start, token_ids=ids[start:stop], num_prompt_tokens=len(ids), next_id=following
        )


def _prefill_once(runner: MLXRunner, ids: tuple[int, ...], step: int) -> tuple[list[float], int]:
    """Return (seconds of each chunk, peak above the weights) of a prompt, and drop the prompt."""
    prompt, seconds = next(_ids), []
    runner.idle()
    base = mx.get_active_memory()
    mx.reset_peak_memory()
    for chunk in _chunks(prompt, (*ids, 7), len(ids), step):
        began_at = time.perf_counter()
        runner.prefill(chunk)
        seconds.append(time.perf_counter() - began_at)
    peak = mx.get_peak_memory() - base
    runner.start(StepPlan(dropped=(prompt,)), lambda newest: ())
    return seconds, peak


class _Decoding:
    """One decoding sequence; a step starts before the previous one is read, as in the engine."""

    def __init__(self, runner: MLXRunner, ids: tuple[int, ...], num_tokens: int, step: int) -> None:
        self._runner, self._id, prompt = runner, next(_ids), next(_ids)
        for chunk in _chunks(prompt, ids, len(ids) - 1, step):
            runner.prefill(chunk)
        row = NewRow(
            id=self._id,
            prompt=prompt,
            ordinal=0,
            prompt_ids=ids,
            max_num_tokens=len(ids) + num_tokens + 2,
            sampling=SamplingParams(temperature=0),
            key=0,
        )
        self._next = StepPlan(new_rows=(row,), decodes=(row.id,), dropped=(prompt,))

    def run(self, num_tokens: int) -> list[float]:
        """Return the seconds of each of `num_tokens` steps."""
        seconds = []
        self._start()
        for place in range(num_tokens):
            began_at = time.perf_counter()
            if place + 1 < num_tokens:
                self._start()
            self._runner.collect()
            seconds.append(time.perf_counter() - began_at)
        return seconds

    def _start(self) -> None:
        self._runner.start(self._next, lambda newest: ())
        self._next = StepPlan(decodes=(self._id,))

    def end(self) -> None:
        self._runner.start(StepPlan(ended=(self._id,)), lambda newest: ())
        self._runner.idle()
