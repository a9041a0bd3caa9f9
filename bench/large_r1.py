"""DeepSeek R1 in 4 bits on a simulated M3 Ultra with 512 GB: 1, 2, 4 and 8 chats beside the plan.

A part of `python -m bench.large`, in real time: the runner waits as long as the speed model predicts, and everything
above it is the serving code. `planned` is that model's figure for the number of rows.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from mlx_backend.api.interface import EngineConfig, GenerationRequest, PrefixCacheConfig, SimulateConfig, TokenEvent
from mlx_backend.engine.engine import DeviceEngine
from mlx_backend.factory import read_shape
from mlx_backend.runners.simulated import SimulatedRunner
from server.profiles import model_files

MACHINE, MODEL = "m3-ultra-512", "deepseek-r1-4bit"
NUM_CHATS = (1, 2, 4, 8)
NUM_PROMPT, NUM_OUTPUT = 200, 250
_VOCABULARY = 250


@dataclass
class _Chat:
    """The times, in seconds, at which a chat was sent and received its tokens."""

    sent_at: float
    token_at: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        return self.token_at[0] - self.sent_at

    @property
    def longest_gap_s(self) -> float:
        return max(b - a for a, b in zip(self.token_at, self.token_at[1:], strict=False))


def print_r1() -> None:
    """Print a row for each number of chats: alone, then all at once, and one that arrives while the others decode."""
    table = Table(
        "chats", "token/s each", "planned", "TTFT of one more, s", "alone", "ratio", "longest gap, s", "promised, s"
    )
    alone_s = 0.0
    for number in NUM_CHATS:
        chats, late, runner, stall_s = asyncio.run(_serve(number))
        alone_s = alone_s or chats[0].ttft_s
        steady = [chat.token_at[-60:] for chat in chats]
        speed = min(59 / (times[-1] - times[0]) for times in steady)
        planned = 1 / runner.pace.step_s(number, NUM_PROMPT + NUM_OUTPUT)
        gap_s = max(chat.longest_gap_s for chat in chats)
        table.add_row(
            str(number),
            f"{speed:.1f}",
            f"{planned:.1f}",
            f"{late.ttft_s:.2f}",
            f"{alone_s:.2f}",
            f"{late.ttft_s / alone_s:.2f}",
            f"{gap_s:.2f}",
            f"{stall_s:.2f}",
        )
    Console(width=120).print(table)


async def _serve(number: int) -> tuple[list[_Chat], _Chat, SimulatedRunner, float]:
    (file,) = model_files(MODEL)
    config = EngineConfig(
        model_path=str(file),
        backend="mock",
        simulate=SimulateConfig(machine=MACHINE),
        prefix_cache=PrefixCacheConfig(enabled=False),
    )
    runner = SimulatedRunner(config, *read_shape(str(file)))
    engine = DeviceEngine(config, runner)
    engine.start()
    while engine.model_info is None:
        await asyncio.sleep(0.01)
    await _chat(engine, 99, 2)  # speeds are measured by it
    running = [asyncio.create_task(_chat(engine, name, NUM_OUTPUT)) for name in range(number)]
    while engine.stats().num_running < number and not any(task.done() for task in running):
        await asyncio.sleep(0.05)
    late = await _chat(engine, 98, 2)
    stall_s = engine.stats().stall_s
    chats = await asyncio.gather(*running)
    engine.close()
    return chats, late, runner, stall_s


async def _chat(engine: DeviceEngine, name: int, max_tokens: int) -> _Chat:
    prompt_ids = tuple((31 * name + 7 * place) % _VOCABULARY for place in range(NUM_PROMPT))
    chat = _Chat(time.perf_counter())
    request = GenerationRequest(request_id=str(name), prompt_ids=prompt_ids, max_tokens=max_tokens)
    async for events in engine.submit([request]):
        chat.token_at += [time.perf_counter()] * sum(isinstance(event, TokenEvent) for event in events)
    return chat
