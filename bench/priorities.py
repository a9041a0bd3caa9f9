"""Chats with a batch beside them and without, on one server, and what the batch got of the engine.

    python -m bench.priorities [--rounds 3] [--chats 6] [--chat 512,96] [--line 256,128] [--pause 1.0] [--in-flight 32]
                               [--model FOLDER] [--simulate MACHINE --as MODEL] [--unclassed]

In each round, in turn: chats alone, one after the other with a pause between; the same with lines of class batch in
flight all the time; and the lines alone for as long. The order changes from round to round. TTFT and ITL (the
mean of a chat) are medians over the chats of a round; ratios are of one round; tokens are those that the engine counts.
`--unclassed` sends the lines as `normal`, for comparison. Then 10,000 requests of three classes are scheduled on a
simulated device, in no time: what each class waited for.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import httpx2
from rich.console import Console
from rich.table import Table

from bench.client import Client, open_http
from bench.prompts import Prompts, open_prompts
from bench.servers import OURS, ROOT, RunningServer, run_server
from mlx_backend.api.interface import PRIORITIES
from server.client.record import Record
from tests.classes_of_requests import Asked, Device

POCKET = ROOT / "server" / "pocket"
NUM_SIMULATED = 10_000


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a round: the chats, how long it took, and the tokens of the batch meanwhile."""

    chats: Sequence[Record]
    took_s: float
    batch_tokens: int
    pauses: int

    @property
    def ttft_s(self) -> float:
        return median(chat.ttft_s or 0.0 for chat in self.chats)

    @property
    def itl_s(self) -> float:
        return median(mean(chat.gaps()) for chat in self.chats)

    @property
    def batch_tok_s(self) -> float:
        return self.batch_tokens / self.took_s


class Bench:
    """One server under load. `lines`, `chat`: tokens of a prompt and of an answer."""

    def __init__(self, server: RunningServer, prompts: Prompts, options: argparse.Namespace) -> None:
        self._server, self._prompts, self._options = server, prompts, options
        self._line_class = "normal" if options.unclassed else "batch"

    async def round(self, number: int) -> dict[str, Part]:
        """Measure chats alone, beside a batch, and the batch alone, in an order that changes with the round."""
        names = ["alone", "beside", "batch"]
        order = names[number % 3 :] + names[: number % 3]
        found: dict[str, Part] = {}
        for name in order:
            found[name] = await self._part(has_chats=name != "batch", has_batch=name != "alone")
        return found

    async def _part(self, *, has_chats: bool, has_batch: bool) -> Part:
        async with open_http(self._server.url) as http:
            lines = [asyncio.create_task(self._lines(http)) for _ in range(self._options.in_flight * has_batch)]
            try:
                await asyncio.sleep(3.0 if has_batch else 0.5)
                before, began = await self._counted(http), time.perf_counter()
                chats = await self._chats(http) if has_chats else await self._wait()
                took_s, after = time.perf_counter() - began, await self._counted(http)
            finally:
                for line in lines:
                    line.cancel()
                await asyncio.gather(*lines, return_exceptions=True)
            await self._until_idle(http)
        return Part(chats, took_s, after[0] - before[0], after[1] - before[1])

    async def _chats(self, http: httpx2.AsyncClient) -> list[Record]:
        prompt, output = self._options.chat
        client, found = Client(http, self._server.model, {"ignore_eos": True}), []
        for _ in range(self._options.chats):
            found.append(await client.complete(self._prompts.make(prompt), output))
            assert found[-1].is_answered, found[-1].error
            await asyncio.sleep(self._options.pause)
        return found

    async def _wait(self) -> list[Record]:
        await asyncio.sleep(self._options.alone_s)
        return []

    async def _lines(self, http: httpx2.AsyncClient) -> None:
        """One line after the other, until it is cancelled."""
        prompt, output = self._options.line
        client = Client(http, self._server.model, {"ignore_eos": True, "priority": self._line_class})
        while True:
            await client.complete(self._prompts.make(prompt), output)

    async def _counted(self, http: httpx2.AsyncClient) -> tuple[int, int]:
        """(tokens that the lines got, pauses) since the server started."""
        (model,) = (await http.get("/admin/models")).json()["data"]
        classes = {each["priority"]: each for each in model["classes"]}
        return classes["batch"]["num_output_tokens"], classes["batch"]["num_pauses"]

    async def _until_idle(self, http: httpx2.AsyncClient) -> None:
        while True:
            (model,) = (await http.get("/admin/models")).json()["data"]
            if model["num_running"] + model["num_waiting"] == 0:
                return
            await asyncio.sleep(0.1)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.priorities", description=__doc__)
    parser.add_argument("--model", type=Path, default=POCKET)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chats", type=int, default=6)
    parser.add_argument("--chat", type=_two, default=(512, 96), help="tokens of prompt and answer")
    parser.add_argument("--line", type=_two, default=(256, 128), help="tokens of prompt and answer")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between chats")
    parser.add_argument("--alone-s", type=float, default=8.0, help="seconds of the batch alone")
    parser.add_argument("--in-flight", type=int, default=32, help="lines that are in flight together")
    parser.add_argument("--unclassed", action="store_true", help="send the lines as class normal")
    parser.add_argument("--no-simulation", action="store_true")
    options, more = parser.parse_known_args()
    console, kind = Console(width=110), OURS.having(*more) if more else OURS
    with suppress(KeyboardInterrupt), run_server(kind, options.model) as server:
        bench, rounds = Bench(server, open_prompts(options.model), options), []
        asyncio.run(bench.round(0))  # the engine learns how long steps and chunks take
        for number in range(options.rounds):
            rounds.append(asyncio.run(bench.round(number)))
        _print(console, rounds)
    if not options.no_simulation:
        _simulate(console)
    return 0


def _two(text: str) -> tuple[int, int]:
    first, second = map(int, text.split(","))
    return first, second


def _print(console: Console, rounds: Sequence[dict[str, Part]]) -> None:
    table = Table("round", title="chats alone, and with a batch beside them")
    for heading in ("TTFT alone", "beside", "x", "ITL alone", "beside", "x", "batch tok/s", "alone", "share", "pauses"):
        table.add_column(heading, justify="right")
    ratios = []
    for number, each in enumerate(rounds, 1):
        alone, beside, batch = each["alone"], each["beside"], each["batch"]
        ratio = beside.ttft_s / alone.ttft_s, beside.itl_s / alone.itl_s
        share = beside.batch_tok_s / max(batch.batch_tok_s, 1e-9)
        ratios.append((*ratio, share))
        table.add_row(
            str(number),
            *(f"{1e3 * alone.ttft_s:.0f} ms", f"{1e3 * beside.ttft_s:.0f} ms", f"{ratio[0]:.2f}"),
            *(f"{1e3 * alone.itl_s:.2f} ms", f"{1e3 * beside.itl_s:.2f} ms", f"{ratio[1]:.2f}"),
            *(f"{beside.batch_tok_s:.0f}", f"{batch.batch_tok_s:.0f}", f"{share:.0%}", str(beside.pauses)),
        )
    console.print(table)
    ttft, itl, share = (median(each) for each in zip(*ratios, strict=True))
    console.print(f"median: TTFT x {ttft:.2f}, ITL x {itl:.2f}, the batch got {share:.0%} of what it gets alone")


def _simulate(console: Console) -> None:
    """Schedule many requests of three classes, and print what each class waited for."""
    source = random.Random(1)
    asked = [
        Asked(
            source.uniform(0, 100),
            source.choices(PRIORITIES, (1, 2, 3))[0],
            source.randint(2, 40),
            source.randint(1, 4),
        )
        for _ in range(NUM_SIMULATED)
    ]
    device = Device(asked, max_rows=32, row_s=0.0002)
    device.run()
    table = Table("class", title=f"{NUM_SIMULATED:,} requests on a simulated device, {device.now:.0f} s of its time")
    for heading in ("requests", "answered", "TTFT, median", "longest"):
        table.add_column(heading, justify="right")
    for priority in PRIORITIES:
        told = device.of(priority)
        whole = sum(len(each.token_at) == each.asked.num_output for each in told)
        times = [each.ttft_s for each in told]
        row = (str(len(told)), str(whole), f"{median(times):.3f} s", f"{max(times):.3f} s")
        table.add_row(priority, *row)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
