"""A mixed load: short and long prompts, some of them alike, clients that leave, invalid requests."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "waiters", "juggle"]


@contextmanager
def loading(url: str, num_clients: int) -> Iterator[None]:
    """Run `num_clients` clients, each with one request at a time, until the block ends."""
    stop = threading.Event()
    threads = [threading.Thread(target=_ask, args=(url, number, stop), daemon=True) for number in range(num_clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _ask(url: str, number: int, stop: threading.Event) -> None:
    random_ = random.Random(number)
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        while not stop.wait(random_.random()):
            with suppress(httpx.HTTPError):
                _ask_once(client, random_, stop)


def _ask_once(client: httpx.Client, random_: random.Random, stop: threading.Event) -> None:
    kind = random_.random()
    if kind < 0.04:
        client.post("/v1/chat/completions", json={"messages": "not a list"})
    elif kind < 0.06:
        client.get("/v1/v1/models")
    elif kind < 0.08:
        client.post("/v1/completions", json={"prompt": "hi", "model": "another"})
    num_words = int(2 ** random_.uniform(3, 11))
    shared = "You are a helpful assistant. " * 40
    body = {"prompt": shared + " ".join(random_.choices(WORDS, k=num_words)), "stream": True}
    patience = random_.choice((40, 10_000))  # some leave before the end
    with client.stream("POST", "/v1/completions", json={**body, "max_tokens": random_.randint(50, 600)}) as answer:
        for count, _ in enumerate(answer.iter_lines()):
            if stop.is_set() or count > patience:
                return
