"""Connections: slow heads and bodies, large heads, too many at once, and /health through all of it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

import httpx
import pytest

from server.config import Config, SecurityConfig
from server.security.connection import PROBE_PLACES
from tests.server.security.wire import connect, exchange, statuses
from tests.serving import mock_engine, serve, wait_until

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def config(**security: object) -> Config:
    return Config(security=SecurityConfig(**security))  # type: ignore[arg-type]


def until_closed(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            received += data
    return received


def test_a_head_that_does_not_come_is_not_waited_for() -> None:
    with serve(mock_engine(), config(read_timeout_s=0.3)) as server:
        for begun in (b"", b"G", GET, b"\r\n", GET + b"X-A: "):
            with connect(server.port) as connection:
                connection.sendall(begun)
                assert until_closed(connection) == b""


def test_a_head_that_drips_has_no_more_time() -> None:
    with serve(mock_engine(), config(read_timeout_s=0.5)) as server, connect(server.port) as connection:
        closed = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                connection.sendall(GET)
                while not closed.wait(0.05):
                    connection.sendall(b"X-A: b\r\n")

        thread = threading.Thread(target=drip)
        thread.start()
        assert statuses(until_closed(connection)) == []
        closed.set()
        thread.join()


def test_a_body_that_does_not_come_is_answered_408() -> None:
    with serve(mock_engine(), config(read_timeout_s=0.3)) as server:
        for begun in (b"", b'{"prompt": '):
            with connect(server.port) as connection:
                connection.sendall(POST + b"Content-Length: 1000\r\n\r\n" + begun)
                answer = until_closed(connection)
                assert statuses(answer) == [408]
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
        server.wait_until_idle()


def test_after_an_answer_the_next_request_has_its_time() -> None:
    """The time of one request is not taken from another's, and a long answer is nobody's slowness."""
    with serve(mock_engine(itl_s=0.035), config(read_timeout_s=1.0)) as server, connect(server.port) as connection:
        body = json.dumps({"prompt": "hi", "max_tokens": 40, "ignore_eos": True}).encode()
        for _ in range(2):
            connection.sendall(POST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert b" 200 OK" in connection.recv(65536)


def test_a_large_head_is_refused_whole_or_in_pieces() -> None:
    with serve(mock_engine(), config(max_header_bytes=4000)) as server:
        large = b"X-A: " + b"a" * 5000
        assert statuses(
            exchange(server.port, [GET + b"Connection: close\r\n" + large + b"\r\n\r\n"], closes=False)
        ) == [431]
        assert statuses(exchange(server.port, [GET, b"X-A: ", *[b"a" * 100] * 60], closes=False)) == [431]
        assert statuses(exchange(server.port, [b"GET /", *[b"a" * 100] * 60], closes=False)) == [431]
        assert statuses(exchange(server.port, [GET, *[b"X-A: b\r\n"] * 200], closes=False)) == [431]


def test_a_trailer_is_no_header() -> None:
    with serve(mock_engine(), config(max_headers=10)) as server:
        head = POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        body = b'{"prompt": "hi"}'
        chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n"
        answer = exchange(
            server.port, [head + chunk + b"X-Request-Id: smuggled\r\nHost: evil.example\r\n\r\n"], closes=False
        )
        assert statuses(answer) == [200]
        assert b"smuggled" not in answer
        flood = exchange(server.port, [head, chunk, *[b"X-A: " + b"b" * 1000 + b"\r\n"] * 50], closes=False)
        assert statuses(flood)[:1] in ([431], [])


def test_chunks_cannot_be_heavier_than_what_they_carry() -> None:
    with serve(mock_engine(), config(max_body_bytes=1000)) as server:
        head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
        answer = exchange(server.port, [head, *[b"1;" + b"x" * 1000 + b"\r\na\r\n"] * 100], closes=False)
        assert [status for status in statuses(answer) if status != 413] == []


def test_more_connections_than_may_be_are_turned_away_and_probes_are_heard() -> None:
    with serve(mock_engine(), config(max_connections=5, read_timeout_s=20)) as server:
        held = [connect(server.port) for _ in range(5)]
        try:
            for connection in held:
                connection.sendall(GET)
            models = exchange(server.port, [b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"], closes=False)
            assert statuses(models) == [503]
            assert b"retry-after: 1" in models.lower()
            assert json.loads(models.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
            health = exchange(server.port, [GET + b"Connection: close\r\n\r\n"])
            assert statuses(health) == [200]
        finally:
            for connection in held:
                connection.close()
        wait_until(lambda: httpx.get(f"{server.url}/v1/models").status_code == 200)


def test_the_probes_places_cannot_be_held_for_long() -> None:
    with serve(mock_engine(), config(max_connections=1)) as server:
        held = [connect(server.port) for _ in range(PROBE_PLACES + 20)]
        try:
            refused = until_closed(held[-1])
            assert statuses(refused) == [503]
            assert until_closed(held[1]) == b""  # silent, and put out soon
            assert statuses(exchange(server.port, [GET + b"Connection: close\r\n\r\n"])) == [200]
        finally:
            for connection in held:
                connection.close()


def test_health_is_answered_while_the_queue_overflows() -> None:
    """A flood of requests: every one is answered, 200 or 503 with Retry-After, and every probe meanwhile."""
    with serve(mock_engine(itl_s=0.001), config(max_connections=50)) as server:
        answers: list[httpx.Response] = []
        body = {"prompt": "hi", "max_tokens": 20, "n": 4}

        def ask() -> None:
            with httpx.Client(base_url=server.url, timeout=30) as client:
                for _ in range(5):
                    answers.append(client.post("/v1/completions", json=body))

        threads = [threading.Thread(target=ask) for _ in range(40)]
        for thread in threads:
            thread.start()
        took_s, probes = [], []
        while any(thread.is_alive() for thread in threads):
            began = time.perf_counter()
            probes.append(httpx.get(f"{server.url}/health", timeout=30).status_code)
            took_s.append(time.perf_counter() - began)
        for thread in threads:
            thread.join()
        assert len(answers) == 200
        assert {answer.status_code for answer in answers} <= {200, 503}
        assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 503)
        assert probes and set(probes) == {200}
        print(f"{len(probes)} probes, the slowest {max(took_s) * 1000:.0f} ms")


def test_a_client_that_reads_no_answer_is_cut() -> None:
    """An answer in one piece is handed over at once; whoever does not take it is not kept."""
    engine = mock_engine(context=1_000_000)
    with serve(engine, config(send_timeout_s=0.3, read_timeout_s=20)) as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        body = json.dumps({"prompt": "x" * 300_000, "max_tokens": 1, "echo": True, "n": 8}).encode()
        with connection:
            connection.sendall(POST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            server.wait_until_idle()
            wait_until(lambda: _is_reset(connection))


@pytest.mark.parametrize("ends_with", [b"\0\1\2 garbage\r\n\r\n", b""], ids=["garbage", "a close"])
def test_every_request_of_a_connection_ends_with_it(ends_with: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Also the one being worked on while others wait behind it: it is aborted, and writes into nothing."""
    body = json.dumps({"prompt": "x", "max_tokens": 4000, "ignore_eos": True}).encode()
    slow = POST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    with serve(mock_engine(itl_s=0.005), config()) as server:
        with connect(server.port) as connection:
            connection.sendall(slow + slow + GET + b"\r\n")
            wait_until(lambda: server.engine.stats().num_running == 1)
            if ends_with:
                connection.sendall(ends_with)
                assert statuses(until_closed(connection)) == [400]
        server.wait_until_idle()
        stats = server.engine.stats()
        assert (stats.num_finished, stats.num_aborted) == (0, 1)  # the second was never begun
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def _is_reset(connection: socket.socket) -> bool:
    """Whether the other side has given up, found without reading what it sent."""
    try:
        connection.send(b"x")
    except OSError:
        return True
    return False


# --- what else HTTP has

ASK = {"prompt": "hi", "max_tokens": 5, "ignore_eos": True}


def posted(body: dict[str, object], version: str = "1.1", *headers: str) -> bytes:
    content = json.dumps(body).encode()
    lines = [f"POST /v1/completions HTTP/{version}", "Host: localhost", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""]).encode() + content


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_sends_no_more_is_answered(version: str, stream: bool) -> None:
    with serve(mock_engine(itl_s=0.05)) as server:
        answer = exchange(server.port, [posted({**ASK, "stream": stream}, version)])
        final = statuses(answer)
        assert final[-1] == 200 and set(final[:-1]) <= {100}
        assert answer.count(b"HTTP/1.1 200") == 1
        if stream:
            assert b"data: [DONE]" in answer
        else:
            assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 5


def test_a_client_that_closes_is_noticed_all_the_same() -> None:
    """Before its answer begins there is nothing to be written to it."""
    with serve(mock_engine(itl_s=0.02)) as server:
        for _ in range(3):
            with connect(server.port) as connection:
                connection.sendall(posted({**ASK, "max_tokens": 3000}))
                wait_until(lambda: server.engine.stats().num_running == 1)
            server.wait_until_idle()
        assert server.engine.stats().num_aborted == 3


def test_half_a_request_is_no_request() -> None:
    with serve(mock_engine()) as server:
        whole = posted(ASK)
        for cut in (5, 60, len(whole) - 1):
            assert statuses(exchange(server.port, [whole[:cut]])) in ([], [400])


def test_several_requests_and_then_no_more() -> None:
    with serve(mock_engine(itl_s=0.01)) as server:
        answer = exchange(server.port, [posted(ASK) * 3])
        assert [status for status in statuses(answer) if status != 100] == [200, 200, 200]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_to_http_1_0_has_no_chunks(stream: bool) -> None:
    with serve(mock_engine()) as server:
        answer = exchange(server.port, [posted({**ASK, "stream": stream}, "1.0")], closes=False)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower()
        assert b"connection: close" in head.lower()
        if stream:
            assert body.startswith(b"data: {") and body.endswith(b"data: [DONE]\n\n")
        else:
            assert json.loads(body)["usage"]["completion_tokens"] == 5


def test_the_head_of_a_stream_for_http_1_0() -> None:
    with serve(mock_engine()) as server:
        request = b"HEAD /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n"
        assert statuses(exchange(server.port, [request], closes=False)) == [405]


@pytest.mark.parametrize(
    "headers",
    [
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: gzip", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked, chunked",),
        ("Transfer-Encoding: identity, chunked",),
    ],
)
def test_a_body_that_is_encoded_otherwise_is_refused(headers: tuple[str, ...]) -> None:
    with serve(mock_engine()) as server:
        lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
        request = "\r\n".join([*lines, "", ""]).encode() + b"2\r\n{}\r\n0\r\n\r\n"
        answer = exchange(server.port, [request], closes=False)
        assert statuses(answer) in ([501], [400])
        if b"501" in answer:
            assert b"unsupported_transfer_encoding" in answer
