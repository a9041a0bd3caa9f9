"""A batch from file to file, by a server over HTTP or by whatever else sends a line. Knows no terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path

import httpx2

from server.batches.answers import Answer, AnswerFile
from server.batches.lines import LineLimits, count_lines, read_lines
from server.batches.progress import Progress
from server.batches.run import Run, Send, Unreachable
from server.batches.sinks import AnswerSink
from server.client.wire import settings

ANSWER_S = 3600.0
"""A server that has not answered a line by then is asked again."""
_MOST_ANSWER_BYTES = 256 << 20


class HTTPSender:
    """Sends lines to a server with OpenAI's API, or with Anthropic's for its messages."""

    def __init__(self, url: str, key: str | None, num_in_flight: int) -> None:
        """Raises ValueError for what is no URL of a server."""
        limits = httpx2.Limits(max_connections=num_in_flight)
        self._http = httpx2.AsyncClient(**{**settings(url, key), "limits": limits})
        self._messages = {"anthropic-version": "2023-06-01", **({"x-api-key": key} if key else {})}

    async def send(self, url: str, body: bytes) -> Answer:
        """Return the answer to a POST. Raises Unreachable."""
        headers = {"Content-Type": "application/json", **(self._messages if url == "/v1/messages" else {})}
        timeout = httpx2.Timeout(ANSWER_S, connect=10.0, pool=None)
        try:
            async with self._http.stream("POST", url, content=body, headers=headers, timeout=timeout) as response:
                written = bytearray()
                async for piece in response.aiter_bytes():
                    written += piece
                    if len(written) > _MOST_ANSWER_BYTES:
                        written = bytearray(b"The answer is too large.")
                        break
        except httpx2.HTTPError as error:
            raise Unreachable(str(error) or type(error).__name__) from None
        asked = response.headers.get("retry-after", "")
        wait_s = float(asked) if asked.isdecimal() else None
        request_id = response.headers.get("x-request-id", response.headers.get("request-id", ""))
        return Answer(response.status_code, bytes(written), request_id, wait_s)

    async def close(self) -> None:
        await self._http.aclose()


class InputError(ValueError):
    """Files that a batch cannot be run with."""


async def run_files(
    source: Path,
    out: Path,
    opening: AbstractAsyncContextManager[Send],
    *,
    num_in_flight: int,
    give_up_s: float,
    limits: LineLimits,
    on_begin: Callable[[Progress], None],
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """Answer every line of `source` that `out` has no answer to.

    `opening`: entered where there is such a line. `on_begin`: given the counts that will change.

    Raises InputError, TooManyLines, AnswersError, Stopped and OSError.
    """
    if not source.is_file():
        raise InputError(f"{source} is not a file" if source.exists() else f"there is no file {source}")
    if out.exists() and os.path.samefile(source, out):
        raise InputError(f"{out} is the input; name another file for the output")
    with source.open("rb") as stream:
        num_lines = count_lines(stream)
    with closing(AnswerSink(AnswerFile(out))) as sink, source.open("rb") as stream:
        done = sink.recover()
        progress = Progress(num_lines, done.num_done, done.num_failed)
        if progress.num_left:
            async with opening as send:
                on_begin(progress)
                lines = read_lines(stream, limits)
                run = Run(lines, sink, send, progress, num_in_flight=num_in_flight, give_up_s=give_up_s, clock=clock)
                await run.run()
        return progress
