"""A client that reads nothing of its stream is cut off, whatever the API, and what computes for it ends."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from mlx_backend.api.interface import ModelInfo
from server.config import Config, SecurityConfig
from tests.fake_engine import FakeEngine, spell
from tests.server.test_app import post_raw, read_to_the_end
from tests.serving import serve, wait_until

HI = {"messages": [{"role": "user", "content": "hi"}]}
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/messages", HI),
    ("/v1/responses", {"input": "hi"}),
    ("/api/chat", HI),
    ("/api/generate", {"prompt": "hi"}),
]


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_a_client_that_reads_nothing_is_cut_off(path: str, body: dict[str, Any]) -> None:
    engine = FakeEngine([spell("a" * 4000, reason=None)] * 10_000, info=ModelInfo(context_limit=4096, vocab_size=260))
    with serve(engine, Config(security=SecurityConfig(send_timeout_s=0.2))) as server:
        connection = post_raw(server, {**body, "stream": True}, receive_buffer=4096, path=path)
        wait_until(lambda: bool(engine.streams and engine.streams[0].num_closed))
        assert not read_to_the_end(connection).endswith(b"0\r\n\r\n")
        engine.script = [spell("a", reason="stop")]
        answer = httpx.post(f"{server.url}{path}", json={**body, "stream": False})
        assert answer.status_code == 200
