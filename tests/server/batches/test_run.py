"""A run answers every line once, however often it is ended, and whatever the server does."""

from __future__ import annotations

import asyncio
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.batches import pacing
from server.batches.answers import Answer, AnswerFile, DiskFull
from server.batches.lines import read_lines
from server.batches.progress import Progress
from server.batches.run import Run, Send, Stopped, Unreachable
from server.batches.sinks import AnswerSink
from tests.server.batches.made import echo, jsonl, request

BUSY = Answer(503, b'{"error": {"message": "busy"}}', retry_after_s=0.0)


@pytest.fixture(autouse=True, scope="module")
def no_wait_is_long() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pacing, "_FIRST_WAIT_S", 0.001)
        patched.setattr(pacing, "_LEAST_ASKED_S", 0.001)
        yield


async def run_once(
    content: bytes, out: Path, send: Send, *, check_room: Callable[[int], None] = lambda _: None, **options
) -> Progress:
    sink = AnswerSink(AnswerFile(out, check_room=check_room))
    try:
        done = sink.recover()
        progress = Progress(content.count(b"\n"), done.num_done, done.num_failed)
        await Run(read_lines(io.BytesIO(content)), sink, send, progress, **{"num_in_flight": 3, **options}).run()
        return progress
    finally:
        sink.close()


def answers(out: Path) -> dict[str, dict]:
    """The output by custom id; fails where a line is there twice."""
    records = [json.loads(line) for line in out.read_bytes().splitlines()]
    found = {record["id"].rpartition("_")[2]: record for record in records}
    assert len(found) == len(records)
    return found


async def send_echo(url: str, body: bytes) -> Answer:
    await asyncio.sleep(0)
    return echo(url, body)


async def test_every_line_is_answered_and_broken_ones_are_errors(tmp_path: Path) -> None:
    content = jsonl(request("a"), b"{", request("b", prompt="x"), request("a"))
    progress = await run_once(content, tmp_path / "out", send_echo)
    found = answers(tmp_path / "out")
    assert [found[n]["custom_id"] for n in "1234"] == ["a", None, "b", "a"]
    assert [found[n]["error"] and found[n]["error"]["code"] for n in "1234"] == [
        *(None, "invalid_json", None, "duplicate_custom_id"),
    ]
    assert found["3"]["response"]["body"]["asked"] == {"prompt": "x"}
    assert (progress.num_done, progress.num_failed, progress.tokens.prompt) == (4, 2, 6)


@settings(max_examples=10)
@given(st.integers(0, 2**32))
def test_however_often_it_is_ended_every_line_is_answered_once(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    chance = random.Random(seed)
    records = [request(f"id {n}", prompt=chance.choice("ab") * chance.randint(1, 5)) for n in range(18)]
    content = jsonl(*records, b"broken", records[0])
    folder = tmp_path_factory.mktemp("ended")

    async def send(url: str, body: bytes) -> Answer:
        for _ in range(chance.randint(0, 3)):
            await asyncio.sleep(0)
        if chance.random() < 0.1:
            return BUSY
        return echo(url, body)

    async def ended() -> None:
        task = asyncio.create_task(run_once(content, folder / "out", send))
        for _ in range(chance.randint(1, 60)):
            await asyncio.sleep(0.0002)
        task.cancel()
        await asyncio.wait([task])
        out = folder / "out"
        if chance.random() < 0.5 and out.exists() and out.stat().st_size:  # as a kill in the middle of a write does
            out.write_bytes(out.read_bytes()[: -chance.randint(1, 50)])

    async def all_of_it() -> None:
        for _ in range(4):
            await ended()
        await run_once(content, folder / "out", send)
        await run_once(content, folder / "whole", send_echo)

    asyncio.run(all_of_it())
    assert answers(folder / "out") == answers(folder / "whole")
    assert len(answers(folder / "out")) == 20


async def test_lines_that_share_a_prefix_are_sent_together(tmp_path: Path) -> None:
    sent: list[str] = []

    async def send(url: str, body: bytes) -> Answer:
        sent.append(json.loads(body)["prompt"][0])
        return echo(url, body)

    content = jsonl(*(request(str(n), prompt=f"{'abc'[n % 3]} {n}") for n in range(30)))
    await run_once(content, tmp_path / "out", send)
    assert sent == sorted(sent)


async def test_no_more_lines_are_with_the_server_than_were_asked_for(tmp_path: Path) -> None:
    num, most = 0, 0

    async def send(url: str, body: bytes) -> Answer:
        nonlocal num, most
        num += 1
        most = max(most, num)
        await asyncio.sleep(0.005)
        num -= 1
        return echo(url, body)

    content = jsonl(*(request(str(n)) for n in range(20)))
    await run_once(content, tmp_path / "out", send, num_in_flight=5)
    assert most == 5
    place = asyncio.Semaphore(2)
    most = 0
    await run_once(content, tmp_path / "again", send, num_in_flight=5, place=lambda: place)
    assert most == 2


async def test_a_busy_server_is_waited_for_and_no_answer_of_a_line(tmp_path: Path) -> None:
    attempts: Iterator[Any] = iter(
        [BUSY, Unreachable("away"), Answer(429, b"{}", retry_after_s=0.0), Answer(500, b"{}")]
    )

    async def send(url: str, body: bytes) -> Answer:
        each = next(attempts, None)
        if isinstance(each, Unreachable):
            raise each
        return each or echo(url, body)

    await run_once(jsonl(request("a")), tmp_path / "out", send)
    assert answers(tmp_path / "out")["1"]["response"]["status_code"] == 200


async def test_a_server_that_is_away_for_too_long_ends_the_run(tmp_path: Path) -> None:
    async def send(url: str, body: bytes) -> Answer:
        raise Unreachable("nobody listens")

    with pytest.raises(Stopped, match=r"no line for 0 s \(nobody listens\)"):
        await run_once(jsonl(request("a")), tmp_path / "out", send, give_up_s=0.0)
    assert (tmp_path / "out").read_bytes() == b""


async def test_a_key_that_is_refused_ends_the_run_and_is_no_answer(tmp_path: Path) -> None:
    async def send(url: str, body: bytes) -> Answer:
        return Answer(401, b'{"error": {"message": "unknown key"}}')

    with pytest.raises(Stopped, match="status 401: unknown key"):
        await run_once(jsonl(request("a"), request("b")), tmp_path / "out", send)
    assert (tmp_path / "out").read_bytes() == b""


async def test_a_full_disk_ends_the_run_and_what_is_there_is_whole(tmp_path: Path) -> None:
    out, left = tmp_path / "out", 3

    def check_room(num_bytes: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise DiskFull(out)

    content = jsonl(*(request(str(n)) for n in range(9)))
    with pytest.raises(DiskFull):
        await run_once(content, out, send_echo, check_room=check_room)
    assert len(answers(out)) == 3
    await run_once(content, out, send_echo)
    assert len(answers(out)) == 9
