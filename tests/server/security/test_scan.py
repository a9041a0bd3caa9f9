"""A scan of the port with hostile bytes: always an answer or a close, never a 5xx, and the server lives."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.server.security.wire import connect, exchange, statuses
from tests.server_process import ServerProcess, serving

HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\n" + HOST + JSON
BODY = b'{"prompt": "hi", "max_tokens": 1}'
LENGTH = f"Content-Length: {len(BODY)}\r\n".encode()
CHUNKED = b"Transfer-Encoding: chunked\r\n"
UPGRADE = b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
END = b"\r\n"


def get(path: bytes, *lines: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    return b"GET " + path + b" " + version + END + HOST + b"".join(lines) + END


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "noise": noise(1, 5000),
    "noise behind a method": b"GET " + noise(2, 500),
    "noise as headers": b"GET / HTTP/1.1\r\n" + noise(3, 2000) + END + END,
    "noise as a body": POST + LENGTH + END + noise(4, len(BODY)),
    "tls hello": bytes.fromhex("16030100a5010000a10303") + noise(5, 160),
    "ssh": b"SSH-2.0-OpenSSH_9.0\r\n",
    "http/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "http/2 upgrade": get(b"/", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"),
    "websocket": get(b"/", b"Upgrade: websocket\r\n", UPGRADE),
    "websocket with frames behind": get(b"/v1/models", b"Upgrade: websocket\r\n", UPGRADE) + bytes(range(128, 200)),
    "websocket post": POST + b"Upgrade: websocket\r\n" + UPGRADE + LENGTH + END + BODY,
    "http/0.9": b"GET /\r\n\r\n",
    "http/1.0": b"GET /health HTTP/1.0\r\n\r\n",
    "http/9.9": get(b"/health", version=b"HTTP/9.9"),
    "no version": b"GET /health\r\n" + HOST + END,
    "connect": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
    "trace": b"TRACE / HTTP/1.1\r\n" + HOST + END,
    "unknown method": b"EXPLODE / HTTP/1.1\r\n" + HOST + END,
    "method in lower case": b"get / HTTP/1.1\r\n" + HOST + END,
    "absolute form": get(b"http://evil.example/v1/models"),
    "asterisk": b"OPTIONS * HTTP/1.1\r\n" + HOST + END,
    "path traversal": get(b"/../../../../etc/passwd"),
    "path traversal, escaped": get(b"/%2e%2e/%2e%2e/etc/passwd"),
    "path traversal, twice escaped": get(b"/%252e%252e%252fetc%252fpasswd"),
    "path traversal in the page": get(b"/dashboard/../../../etc/passwd"),
    "path traversal in the page, escaped": get(b"/dashboard/%2e%2e%2f%2e%2e%2fetc%2fpasswd"),
    "backslashes": get(b"/..\\..\\etc\\passwd"),
    "null in the path": get(b"/health\0.html"),
    "escaped null in the path": get(b"/%00"),
    "half an escape": get(b"/%f%zz%"),
    "not utf-8 in the path": get(b"/\xff\xfe"),
    "escapes that are no utf-8": get(b"/%ff%fe%c0%af"),
    "newlines in the path": get(b"/%0d%0aSet-Cookie:%20a=b"),
    "long path": get(b"/" + b"a" * 100_000),
    "long query": get(b"/health?" + b"a" * 100_000),
    "long method": b"A" * 100_000 + b" / HTTP/1.1\r\n" + HOST + END,
    "long header": get(b"/health", b"X-A: " + b"a" * 1_000_000 + END),
    "long header's name": get(b"/health", b"X" * 100_000 + b": a\r\n"),
    "many headers": get(b"/health", b"X-A: b\r\n" * 20_000),
    "null in a header": get(b"/health", b"X-A: a\0b\r\n"),
    "not ascii in a header": get(b"/health", b"X-A: \xff\xfe\xe9\r\n"),
    "no name": get(b"/health", b": a\r\n"),
    "space before the colon": POST + b"Content-Length : 5\r\n\r\nhello",
    "folded header": get(b"/health", b"X-A: a\r\n b\r\n"),
    "bare newlines": b"GET /health HTTP/1.1\nHost: localhost\n\n",
    "bare returns": b"GET /health HTTP/1.1\rHost: localhost\r\r",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": get(b"/health", b"Host: evil.example\r\n"),
    "host of another": b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "host of noise": b"GET /v1/models HTTP/1.1\r\nHost: [[[%%%@::\xff\r\n\r\n",
    "length and chunks": POST + LENGTH + CHUNKED + END + b"0\r\n\r\n" + get(b"/smuggled"),
    "chunks and length": POST + CHUNKED + b"Content-Length: 6\r\n" + END + b"0\r\n\r\nG",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n" + END + b"hello!",
    "lengths in one line": POST + b"Content-Length: 5, 5\r\n" + END + b"hello",
    "negative length": POST + b"Content-Length: -1\r\n" + END,
    "length with a plus": POST + b"Content-Length: +5\r\n" + END + b"hello",
    "length in hexadecimal": POST + b"Content-Length: 0x5\r\n" + END + b"hello",
    "length beyond 64 bits": POST + b"Content-Length: 99999999999999999999999\r\n" + END,
    "length of many digits": POST + b"Content-Length: " + b"9" * 5000 + END + END,
    "length that is no number": POST + "Content-Length: ٣\r\n".encode() + END,
    "large length": POST + b"Content-Length: 99999999999\r\n" + END + b"x",
    "unknown coding": POST + b"Transfer-Encoding: gzip\r\n" + END + BODY,
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n" + END + b"0\r\n\r\n",
    "chunked not last": POST + b"Transfer-Encoding: chunked, identity\r\n" + END + b"0\r\n\r\n",
    "chunked with a tab": POST + b"Transfer-Encoding:\x0bchunked\r\n" + END + b"0\r\n\r\n",
    "chunk without a size": POST + CHUNKED + END + b"\r\nhello\r\n",
    "chunk of a negative size": POST + CHUNKED + END + b"-1\r\nhello\r\n0\r\n\r\n",
    "chunk of 64 bits": POST + CHUNKED + END + b"ffffffffffffffff\r\nhello",
    "chunk longer than it says": POST + CHUNKED + END + b"2\r\nhello\r\n0\r\n\r\n",
    "chunk with a long extension": POST + CHUNKED + END + b"1;" + b"a" * 100_000 + b"\r\nx\r\n0\r\n\r\n",
    "trailers": POST + CHUNKED + END + b"0\r\nHost: evil.example\r\nContent-Length: 5\r\n\r\n",
    "gzip body": POST + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n" + END + b"\x1f\x8b\x08\0",
    "half a request line": b"GET /hea",
    "half a head": b"GET /health HTTP/1.1\r\nHost: loc",
    "half a body": POST + LENGTH + END + BODY[:5],
    "half a chunk": POST + CHUNKED + END + b"5\r\nhel",
    "body of a get": get(b"/health", b"Content-Length: 5\r\n") + b"hello",
    "more than the body": POST + LENGTH + END + BODY + b"left over",
    "pipelined": get(b"/health") * 20 + POST + LENGTH + END + BODY + get(b"/version"),
    "a thousand pipelined": get(b"/version") * 1000,
    "pipelined behind garbage": b"\0\0\0\r\n\r\n" + get(b"/health"),
    "garbage behind a request": POST + LENGTH + END + BODY + noise(6, 500),
    "expect": POST + b"Expect: 100-continue\r\n" + LENGTH + END + BODY,
    "expect something else": POST + b"Expect: the-unexpected\r\n" + LENGTH + END + BODY,
    "deep json": POST + b"Content-Length: 200000\r\n" + END + b"[" * 200_000,
    "deep json of many keys": POST + b"Content-Length: 250000\r\n" + END + b'{"a":' * 50_000,
    "nulls": POST + b"Content-Length: 10000\r\n" + END + bytes(10_000),
    "json of a large number": POST + b"Content-Length: 20013\r\n" + END + b'{"n":' + b"9" * 20_007 + b"}",
    "json that is no object": POST + b"Content-Length: 2\r\n" + END + b"[]",
    "json in utf-16": POST + b"Content-Length: 68\r\n" + END + BODY.decode().encode("utf-16"),
    "crlf floods": b"\r\n" * 50_000,
    "spaces": b" " * 100_000,
}


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[ServerProcess, httpx.Client]]:
    with serving("--backend", "mock", "--security-read-timeout-s", "1") as (process, client):
        client.headers["Connection"] = "close"  # one that waits for the next test may be closed as that begins
        yield process, client


@pytest.fixture(scope="module")
def left_open(server: tuple[ServerProcess, httpx.Client]) -> dict[str, bytes]:
    """What each gets whose connection is left open: most last until the server closes them, so many at a time."""
    port = port_of(server[1])
    with ThreadPoolExecutor(16) as threads:
        answers = threads.map(lambda sent: exchange(port, [sent], closes=False), HOSTILE.values())
        return dict(zip(HOSTILE, answers, strict=True))


def port_of(client: httpx.Client) -> int:
    assert client.base_url.port is not None
    return client.base_url.port


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("cut", ["at once", "in pieces", "left open"])
def test_hostile_bytes_get_an_answer_or_a_close(
    server: tuple[ServerProcess, httpx.Client], left_open: dict[str, bytes], name: str, cut: str
) -> None:
    process, client = server
    sent = HOSTILE[name]
    size = max(1, len(sent) // 7) if cut == "in pieces" else max(1, len(sent))
    pieces = [sent[start : start + size] for start in range(0, len(sent), size)]
    answer = left_open[name] if cut == "left open" else exchange(port_of(client), pieces)
    assert all(status < 500 for status in statuses(answer)), answer[:2000]
    assert b"root:" not in answer and b"Traceback" not in answer and b"smuggled" not in answer
    assert b"\r\nSet-Cookie" not in answer
    assert client.get("/health").json()["status"] == "ok"
    assert process.process.poll() is None


def test_noise_of_many_kinds(server: tuple[ServerProcess, httpx.Client]) -> None:
    """Good requests with a few bytes changed, taken out, or put in."""
    process, client = server
    good = [POST + LENGTH + END + BODY, get(b"/v1/models"), POST + CHUNKED + END + b"2\r\n{}\r\n0\r\n\r\n"]
    dice = random.Random(7)
    for _ in range(300):
        sent = bytearray(dice.choice(good))
        for _ in range(dice.randint(1, 6)):
            place = dice.randrange(len(sent))
            sent[place : place + dice.randint(0, 3)] = dice.randbytes(dice.randint(0, 3))
            sent = sent or bytearray(b"x")
        answer = exchange(port_of(client), [bytes(sent)])
        assert all(status < 500 for status in statuses(answer)), (bytes(sent), answer)
    assert client.get("/health").json()["status"] == "ok"
    assert process.process.poll() is None


def test_resets_at_every_byte(server: tuple[ServerProcess, httpx.Client]) -> None:
    process, client = server
    whole = POST + LENGTH + END + BODY
    for length in range(0, len(whole) + 1, 3):
        connection = connect(port_of(client))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # close with a reset
        connection.sendall(whole[:length])
        connection.close()
    assert client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 1}).status_code == 200
    assert process.process.poll() is None


def test_nothing_of_it_was_an_error_of_the_servers(server: tuple[ServerProcess, httpx.Client]) -> None:
    """The log of all the above."""
    process, _ = server
    log = "\n".join(process.lines)
    assert not re.search(r"Traceback|unexpected| ERROR ", log), log[-20_000:]
