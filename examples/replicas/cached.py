"""What share of prompt tokens is cached, with conversations that take turns: at one server, or through a router.

examples/replicas/serve.sh                                              # in one terminal
python examples/replicas/cached.py [http://127.0.0.1:8080 ...]          # in another; several addresses one by one

Every conversation has a system prompt of its own, or with `--shared` the same one. From its second turn on, all of a
prompt but the newest message was computed before: a server that is alone has it, and so does a router that finds the
replica that computed it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa")
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(url: str, path: str, body: dict[str, Any] | None = None) -> tuple[dict[str, Any], str]:
    """The answer, and the replica that a router says it is from."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    with NO_PROXY.open(request, timeout=600) as answer:
        return json.load(answer), answer.headers.get("x-smg-routed-worker-id", url)


def measure(url: str, wish: argparse.Namespace) -> str:
    """One line: the share, and how the requests were divided."""
    model = ask(url, "/v1/models")[0]["data"][0]["id"]
    source = random.Random(wish.seed)

    def words(number: int) -> str:
        return " ".join(source.choice(WORDS) for _ in range(number))

    shared = words(wish.system)
    conversations: list[list[dict[str, str]]] = [
        [{"role": "system", "content": shared if wish.shared else words(wish.system)}]
        for _ in range(wish.conversations)
    ]
    places: list[list[str]] = [[] for _ in conversations]
    total = cached = 0

    def turn(number: int) -> tuple[int, int]:
        messages = conversations[number]
        answer, place = ask(
            url, "/v1/chat/completions", {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0}
        )
        messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"] or "ok"})
        places[number].append(place)
        usage = answer["usage"]
        return usage["prompt_tokens"], (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)

    with ThreadPoolExecutor(wish.at_once) as pool:
        for number in range(wish.turns):
            time.sleep(wish.pause if number else 0)
            order = list(range(wish.conversations))
            source.shuffle(order)
            for conversation in order:
                conversations[conversation].append({"role": "user", "content": f"Turn {number}: {words(12)}"})
            for num_prompt, num_cached in pool.map(turn, order):
                total += num_prompt if number else 0
                cached += num_cached if number else 0
    moves = sum(one != next for visited in places for one, next in itertools.pairwise(visited))
    counts = Counter(itertools.chain.from_iterable(places))
    shares = " and ".join(str(number) for _, number in sorted(counts.items()))
    return f"{url}: {cached / total:.0%} of {total} prompt tokens cached; requests {shares}; moves {moves}"


def main() -> None:
    """Measure each address."""
    parser = argparse.ArgumentParser()
    parser.add_argument("urls", nargs="*", default=["http://127.0.0.1:8080"])
    parser.add_argument("--conversations", type=int, default=6)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--system", type=int, default=60, help="words of a system prompt")
    parser.add_argument("--shared", action="store_true", help="one system prompt for all")
    parser.add_argument("--at-once", type=int, default=1, help="requests at once")
    parser.add_argument("--pause", type=float, default=0, help="seconds between turns")
    parser.add_argument("--seed", type=int, default=1)
    wish = parser.parse_args()
    for url in wish.urls:
        print(measure(url, wish), flush=True)


if __name__ == "__main__":
    main()
