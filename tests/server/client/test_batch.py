"""A batch from file to file, asked of a real server over a socket; and servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from server.batches.answers import AnswersError
from server.batches.lines import DEFAULT_LIMITS, TooManyLines
from server.batches.progress import Progress
from server.batches.run import Send, Unreachable
from server.client.batch import HTTPSender, InputError, run_files
from tests.server.batches.made import echo, jsonl, request


class _Handler(BaseHTTPRequestHandler):
    """Answers what the path says, and keeps what was asked."""

    asked: ClassVar[list[tuple[str, dict[str, str], bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        if self.path == "/cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            return
        self.send_response(503 if self.path == "/busy" else 200)
        self.send_header("Retry-After", "7")
        self.send_header("X-Request-Id", "its-id")
        self.end_headers()
        self.wfile.write(b'{"answer": 1}')

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/"
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_line_is_sent_with_its_key_and_what_its_api_needs(url: str) -> None:
    sender = HTTPSender(url, "secret", 1)
    answer = await sender.send("/v1/messages", b'{"x": 1}')
    await sender.close()
    assert (answer.status, answer.body, answer.request_id, answer.retry_after_s) == (200, b'{"answer": 1}', "its-id", 7)
    path, headers, body = _Handler.asked[-1]
    assert (path, body) == ("/v1/messages", b'{"x": 1}')
    assert headers["authorization"] == "Bearer secret"
    assert (headers["x-api-key"], headers["anthropic-version"]) == ("secret", "2023-06-01")
    assert headers["content-type"] == "application/json"


async def test_an_answer_that_is_cut_off_or_none_is_no_answer(url: str) -> None:
    sender = HTTPSender(url, None, 1)
    with pytest.raises(Unreachable):
        await sender.send("/cut", b"{}")
    assert (await sender.send("/busy", b"{}")).status == 503
    await sender.close()
    nowhere = HTTPSender("http://127.0.0.1:9", None, 1)
    with pytest.raises(Unreachable):
        await nowhere.send("/v1/completions", b"{}")
    await nowhere.close()


async def test_an_answer_without_an_end_is_not_held_in_memory(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.client.batch._MOST_ANSWER_BYTES", 5)
    sender = HTTPSender(url, None, 1)
    assert (await sender.send("/v1/completions", b"{}")).body == b"The answer is too large."
    await sender.close()


async def _echo(url: str, body: bytes) -> Any:
    return echo(url, body)


async def run(source: Path, out: Path, send: Send = _echo) -> Progress:
    return await run_files(
        source,
        out,
        nullcontext(send),
        num_in_flight=2,
        give_up_s=0.0,
        limits=DEFAULT_LIMITS,
        on_begin=lambda _: None,
    )


async def test_what_is_answered_is_not_asked_again(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.write_bytes(jsonl(request("a"), request("b"), b"{"))
    assert (await run(source, out)).num_done == 3
    before = out.read_bytes()

    async def fail(url: str, body: bytes) -> Any:
        raise AssertionError("asked")

    assert (await run(source, out, fail)).num_failed == 1
    assert out.read_bytes() == before
    source.write_bytes(jsonl(request("a"), request("b"), b"{", request("c")))  # lines may be added
    assert (await run(source, out)).num_done == 4
    source.write_bytes(jsonl(request("b"), request("a"), b"{", request("c"), request("d")))
    with pytest.raises(AnswersError, match="the input has changed"):
        await run(source, out)
    assert len(out.read_bytes().splitlines()) == 4


async def test_files_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    with pytest.raises(InputError, match="there is no file"):
        await run(source, out)
    with pytest.raises(InputError, match="is not a file"):
        await run(tmp_path, out)
    source.write_bytes(jsonl(request("a"), request("b")))
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(InputError, match="is the input"):
        await run(source, tmp_path / "link")
    assert source.read_bytes() == jsonl(request("a"), request("b"))
    with pytest.raises(OSError, match="No such file"):
        await run(source, tmp_path / "none" / "out")
    monkeypatch.setattr("server.batches.lines.MAX_NUMBER", 1)
    with pytest.raises(TooManyLines):
        await run(source, out)
    assert not out.exists()


async def test_an_empty_input_is_answered(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"\n\n")
    assert (await run(tmp_path / "in", tmp_path / "out")).num_lines == 0


async def test_a_run_that_is_cancelled_lets_go_of_its_output(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(jsonl(request("a"), request("b")))
    is_asked = asyncio.Event()

    async def wait(url: str, body: bytes) -> Any:
        is_asked.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(run(tmp_path / "in", tmp_path / "out", wait))
    await is_asked.wait()
    task.cancel()
    await asyncio.wait([task])
    await run(tmp_path / "in", tmp_path / "out")
    answered = [json.loads(line)["custom_id"] for line in (tmp_path / "out").read_bytes().splitlines()]
    assert sorted(answered) == ["a", "b"]
