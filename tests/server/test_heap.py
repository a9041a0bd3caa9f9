"""Memory that is given back to the system once a large piece of work is done."""

from __future__ import annotations

import platform
import random

import pytest

from server import heap, pocket
from tests.server_process import serving

WORDS = ["".join(random.Random(number).choices("etaoinshr", k=5)) for number in range(500)]
TEXT = " ".join(random.Random(0).choices(WORDS, k=166_000))


def test_it_can_be_called_anywhere_and_any_time() -> None:
    heap.give_back()
    heap.give_back()


@pytest.mark.mlx
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="reads /proc, and malloc_trim is glibc's")
@pytest.mark.skipif(not pocket.is_here(), reason="the weights are not there; `make pocket` makes them")
def test_a_long_text_leaves_no_memory_behind() -> None:
    with serving("pocket") as (server, client):
        assert client.post("/tokenize", json={"prompt": "hello"}).status_code == 200
        before = server.rss_bytes()
        for _ in range(2):
            answer = client.post("/tokenize", json={"prompt": TEXT})
            assert answer.json()["count"] > 500_000
        client.get("/health")
        assert server.rss_bytes() - before < 128 << 20, "it was over 300 MB"
