"""Random grammars through a server: every one is answered, nothing dies, and no answer that has ended is wrong."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any

import httpx
import pytest

from server import pocket
from tests.random_grammars import Drawn, draw
from tests.server_process import ServerProcess, serving

AT_ONCE = 8
MEMORY_BYTES = 3_000_000_000
"""Of the server's address space, all of it."""


async def check(url: str, count: int, seed: int) -> Counter[str]:
    """How often which code came, by kind; fails where an answer is not what it should be."""
    source, found = random.Random(seed), Counter[str]()
    places = asyncio.Semaphore(AT_ONCE)

    async def ask(client: httpx.AsyncClient, number: int, drawn: Drawn) -> None:
        async with places:
            body: dict[str, Any] = {"prompt": f"{number}", "max_tokens": 400, "temperature": 1, "seed": number}
            content = json.dumps({**body, **drawn.fields})
            answer = await client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
        said = answer.json()
        if answer.status_code == 200:
            (choice,) = said["choices"]
            code = choice["finish_reason"]
            assert code == "length" or drawn.is_right(choice["text"]), (drawn.fields, choice)
        else:
            code = said["error"]["code"]
            assert answer.status_code == 400, (drawn.fields, said)
        found[f"{drawn.kind}: {code}"] += 1

    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        await asyncio.gather(*(ask(client, number, draw(source)) for number in range(count)))
        assert (await client.get("/health")).status_code == 200
    return found


def check_server(server: ServerProcess, url: str, count: int, seed: int) -> None:
    found = asyncio.run(check(url, count, seed))
    print(*(f"{number:6d} {what}" for what, number in sorted(found.items())), sep="\n")
    assert sum(found.values()) == count
    assert not any("Traceback" in line for line in server.lines), server.lines
    assert server.stop() == 0


def test_random_grammars() -> None:
    with serving("--backend", "mock", memory_bytes=MEMORY_BYTES) as (server, client):
        check_server(server, str(client.base_url), 80, seed=1)


@pytest.mark.soak
def test_ten_thousand_random_grammars() -> None:
    with serving("--backend", "mock", memory_bytes=MEMORY_BYTES) as (server, client):
        check_server(server, str(client.base_url), 10_000, seed=2)


@pytest.mark.soak
@pytest.mark.mlx
@pytest.mark.skipif(not pocket.is_here(), reason="the weights are not there; `make pocket` makes them")
def test_a_thousand_random_grammars_on_the_pocket_model() -> None:
    with serving("pocket") as (server, client):
        check_server(server, str(client.base_url), 1_000, seed=3)
