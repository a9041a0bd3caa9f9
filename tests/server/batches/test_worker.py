"""Batches come to an end, whatever happens on the way: a restart, a cancel, the end of a window, a full disk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from server.batches import worker as module
from server.batches.answers import Answer, DiskFull
from server.batches.folder import Folder
from server.batches.records import Batch
from server.batches.room import Bounds, StoreFull
from server.batches.run import Send, Stopped
from server.batches.store import Store
from server.batches.worker import BatchWorker, WorkerLimits
from tests.server.batches.made import echo, jsonl, request

LIMITS = WorkerLimits(num_in_flight=3, max_lines=1000, max_line_bytes=10_000)
DEADLINE_S = 60.0


class Server:
    """The batches of a server, from its start to its end."""

    def __init__(self, worker: BatchWorker) -> None:
        self.worker, self.store = worker, worker.store

    def create(self, content: bytes, owner: str = "", window_s: float = 1000.0) -> Batch:
        with closing(self.store.begin_upload(owner)) as upload:
            upload.write(content)
            file = upload.finish("in.jsonl", "batch")
        options: dict[str, Any] = {"endpoint": "/v1/completions", "window": "1h", "metadata": None}
        batch = self.store.create_batch(owner, input_id=file.id, window_s=window_s, **options)
        self.worker.wake()
        return batch

    def cancel(self, batch: Batch) -> None:
        self.store.cancel_batch(batch.owner, batch.id)
        self.worker.wake()

    async def ended(self, batch: Batch) -> Batch:
        await until(lambda: not batch.is_open)
        return batch

    def answers(self, batch: Batch) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Of a batch that has ended."""
        found = []
        for is_there, id in ((batch.has_output, batch.output_id), (batch.has_errors, batch.error_id)):
            content = self.store.path_of(id).read_bytes() if is_there else b""
            assert is_there == bool(content)
            found.append([json.loads(line) for line in content.splitlines()])
        return found[0], found[1]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def serving(path: Path, send: Send, limits: WorkerLimits = LIMITS, **options: Any) -> AsyncIterator[Server]:
    store = Store(Folder(path), lambda: Bounds(10**9, 10**9, 1000, 1e6))
    worker = BatchWorker(store, lambda: limits, **options)
    running = asyncio.create_task(worker.run(lambda owner: send))
    try:
        yield Server(worker)
    finally:
        running.cancel()
        await asyncio.wait([running])


async def answer(url: str, body: bytes) -> Answer:
    await asyncio.sleep(0)
    return echo(url, body) if "bad" not in json.loads(body)["prompt"] else Answer(400, b'{"error": {}}')


async def never(url: str, body: bytes) -> Answer:
    await asyncio.Event().wait()
    raise AssertionError


class Some:
    """Answers so many requests, and leaves the others waiting."""

    def __init__(self, num: int) -> None:
        self.left, self.num_waiting = num, 0

    async def __call__(self, url: str, body: bytes) -> Answer:
        self.left -= 1
        if self.left < 0:
            self.num_waiting += 1
            await never(url, body)
        return echo(url, body)


def lines(num: int) -> bytes:
    return jsonl(*(request(f"id {n}", prompt=f"p {n}") for n in range(num)))


async def test_a_batch_is_answered_and_failures_are_in_their_own_file(tmp_path: Path) -> None:
    content = jsonl(request("a"), b"{", request("b", prompt="bad"), request("c", "/v1/embeddings", input="x"))
    async with serving(tmp_path, answer) as server:
        batch = await server.ended(server.create(content))
        output, errors = server.answers(batch)
        assert batch.status == "completed"
        assert [record["custom_id"] for record in output] == ["a"]
        assert {record["custom_id"] for record in errors} == {None, "b", "c"}
        codes = {record["custom_id"]: (record["error"] or {}).get("code") for record in errors}
        assert codes == {None: "invalid_json", "b": None, "c": "mismatched_endpoint"}
        assert server.worker.counts_of(batch) == (4, 1, 3)
        assert list(batch.times) == ["in_progress", "finalizing", "completed"]


async def test_a_batch_goes_on_after_a_restart(tmp_path: Path) -> None:
    some = Some(7)
    async with serving(tmp_path, some) as server:
        batch = server.create(lines(20))
        await until(lambda: some.num_waiting == LIMITS.num_in_flight)
        assert server.worker.counts_of(batch) == (20, 7, 0)
    num_asked = 0

    async def count(url: str, body: bytes) -> Answer:
        nonlocal num_asked
        num_asked += 1
        return echo(url, body)

    async with serving(tmp_path, count) as server:
        (again,) = server.store.batches("")
        assert (again.id, again.status) == (batch.id, "in_progress")
        output, errors = server.answers(await server.ended(again))
        assert sorted(record["custom_id"] for record in output) == sorted(f"id {n}" for n in range(20))
        assert (errors, num_asked) == ([], 13)
        assert again.times["in_progress"] == batch.times["in_progress"]


@pytest.mark.parametrize("has_output", [False, True])
async def test_a_batch_that_was_about_to_end_is_not_answered_again(tmp_path: Path, has_output: bool) -> None:
    """A kill between the last answer and the end; once before the answers are a file, once after it."""
    async with serving(tmp_path, answer) as server:
        batch = await server.ended(server.create(lines(3)))
        before = server.answers(batch)
        if not has_output:
            output, _ = server.store.answers_of(batch)
            server.store.path_of(batch.output_id).rename(output)
        batch.status, batch.ending, batch.has_output = "finalizing", "completed", False
        server.store.save(batch)
    async with serving(tmp_path, never) as server:
        (again,) = server.store.batches("")
        assert (await server.ended(again)).status == "completed"
        assert server.answers(again) == before


async def test_a_cancel_in_the_middle_keeps_what_is_answered(tmp_path: Path) -> None:
    some = Some(5)
    async with serving(tmp_path, some) as server:
        batch = server.create(lines(20))
        await until(lambda: some.num_waiting == LIMITS.num_in_flight)
        server.cancel(batch)
        assert batch.status == "cancelling"
        found = await server.ended(batch)
        assert found.status == "cancelled"
        assert [len(records) for records in server.answers(batch)] == [5, 0]
        server.cancel(batch)
        assert not batch.is_open


async def test_a_cancel_before_it_begins_and_one_before_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path, never) as server:
        running = [server.create(lines(2)) for _ in range(module.MAX_RUNNING)]
        waiting = server.create(lines(2))
        await until(lambda: all(batch.status == "in_progress" for batch in running))
        assert waiting.status == "validating"
        server.cancel(waiting)
        server.cancel(running[0])
        await server.ended(running[0])
        await server.ended(waiting)
        server.store.cancel_batch("", running[1].id)  # the server ends before its worker hears of it
    async with serving(tmp_path, never) as server:
        batch = server.store.batch("", running[1].id)
        assert (await server.ended(batch)).status == "cancelled"


async def test_what_is_not_answered_in_its_window_expires(tmp_path: Path) -> None:
    async with serving(tmp_path, Some(4)) as server:
        batch = await server.ended(server.create(lines(10), window_s=0.3))
        output, errors = server.answers(batch)  # how many it could answer depends on the machine
        assert batch.status == "expired"
        assert len(output) <= 4
        assert len(output) + len(errors) == 10
        assert {record["error"]["code"] for record in errors} == {"batch_expired"}
        assert server.worker.counts_of(batch) == (10, len(output), len(errors))


async def test_a_window_that_ends_while_no_server_runs_expires_at_the_next_start(tmp_path: Path) -> None:
    some = Some(4)
    async with serving(tmp_path, some) as server:
        batch = server.create(lines(10), window_s=1000.0)
        await until(lambda: some.num_waiting == LIMITS.num_in_flight)
    async with serving(tmp_path, answer, clock=lambda: batch.expires_at + 1) as server:
        again = await server.ended(server.store.batch("", batch.id))
        assert again.status == "expired"
        assert sum(map(len, server.answers(again))) == 10


@pytest.mark.parametrize(("content", "code"), [(b"\n \n", "empty_file"), (lines(6), "too_many_lines")])
async def test_an_input_that_cannot_be_used_fails(tmp_path: Path, content: bytes, code: str) -> None:
    async with serving(tmp_path, never, WorkerLimits(2, 5, 10_000)) as server:
        batch = await server.ended(server.create(content))
        assert batch.status == "failed"
        assert [failure["code"] for failure in batch.failures] == [code]
        assert server.answers(batch) == ([], [])


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (Stopped("the key that the batch belongs to is not valid any more"), "key_revoked"),
        (DiskFull(Path("x")), "disk_full"),
        (StoreFull("no room"), "storage_full"),
        (OSError("broken"), "storage_error"),
        (RuntimeError("a fault of ours"), "internal_error"),
    ],
)
async def test_a_failure_has_its_code_and_what_is_answered_is_kept(
    tmp_path: Path, raised: Exception, code: str
) -> None:
    num_asked = 0

    async def send(url: str, body: bytes) -> Answer:
        nonlocal num_asked
        num_asked += 1
        if num_asked > 5:
            raise raised
        return echo(url, body)

    async with serving(tmp_path, send) as server:
        batch = await server.ended(server.create(lines(20)))
        assert batch.status == "failed"
        assert [failure["code"] for failure in batch.failures] == [code]
        output, _ = server.answers(batch)
        assert 1 <= len(output) <= 5
        assert batch.num_done == len(output)


async def test_answers_take_room_of_their_owner(tmp_path: Path) -> None:
    async with serving(tmp_path, answer) as server:
        size = server.store.room.num_bytes
        batch = await server.ended(server.create(lines(4)))
        sizes = [file.num_bytes for file in server.store.files("")]
        assert server.store.room.num_bytes == size + sum(sizes)
        assert batch.output_id in {file.id for file in server.store.files("")}
        bounds = Bounds(server.store.room.num_bytes + 1500, 10**9, 1000, 1e6)
        server.store.bounds = server.store.room._bounds = lambda: bounds
        batch = await server.ended(server.create(lines(6)))
        assert [failure["code"] for failure in batch.failures] == ["storage_full"]
        assert server.answers(batch)[1] == []


async def test_batches_share_the_places_and_owners_take_turns(tmp_path: Path) -> None:
    some = Some(0)
    async with serving(tmp_path, some) as server:
        first = [server.create(lines(5), "ann") for _ in range(6)]
        other = server.create(lines(5), "bob")
        await until(lambda: some.num_waiting == LIMITS.num_in_flight)
        running = {id for id in server.worker._running}
        assert len(running) == module.MAX_RUNNING
        server.cancel(next(batch for batch in first if batch.id in running))
        await until(lambda: other.status == "in_progress")
        assert some.num_waiting - LIMITS.num_in_flight <= LIMITS.num_in_flight


async def test_a_state_that_cannot_be_written_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.001)
    async with serving(tmp_path, answer) as server:
        save, adopt, num_failures = server.store.save, server.store.adopt, 0

        def fail_to_save(batch: Batch) -> bool:
            nonlocal num_failures
            if batch.ending is not None and num_failures < 3:
                num_failures += 1
                return False
            return save(batch)

        def fail_to_adopt(*arguments: Any) -> bool:
            nonlocal num_failures
            if num_failures < 5:
                num_failures += 1
                raise OSError("no room")
            return adopt(*arguments)

        monkeypatch.setattr(server.store, "save", fail_to_save)
        monkeypatch.setattr(server.store, "adopt", fail_to_adopt)
        batch = await server.ended(server.create(lines(3)))
        assert num_failures == 5
        assert len(server.answers(batch)[0]) == 3
