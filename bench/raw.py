"""mlx-lm alone, without a server: `python -m bench.raw MODEL`. Each JSON line in is work, each line out its records.

In : {"prompts": [text, ...], "max_tokens": n}; one prompt runs by `stream_generate`, several by `BatchGenerator`.
     {"continues": text, "max_tokens": n}: one prompt, in a cache that keeps the prefix shared with the previous one.
Out: {"is_ready": true} once, then {"records": [...]} for each line, in the form of `server.client.record.Record`.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import Any

from server.client.record import Record


def main(folder: str) -> None:
    """Load, then work until standard input ends."""
    from mlx_lm import load

    answers, sys.stdout = sys.stdout, sys.stderr  # keeps prints of the library out of the answers
    model, tokenizer = load(folder)[:2]
    kept = KeptCache(model, tokenizer)
    print(json.dumps({"is_ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        work = json.loads(line)
        if "continues" in work:
            records = kept.run(work["continues"], work["max_tokens"])
        else:
            run = run_single if len(work["prompts"]) == 1 else run_batch
            records = run(model, tokenizer, work["prompts"], work["max_tokens"])
        print(json.dumps({"records": [asdict(record) for record in records]}), file=answers, flush=True)


def run_single(model: Any, tokenizer: Any, prompts: list[str], max_tokens: int) -> list[Record]:
    """Generate from one prompt, greedy."""
    from mlx_lm import stream_generate

    sent_s = time.perf_counter()
    answer = stream_generate(model, tokenizer, prompts[0], max_tokens=max_tokens)
    stamps = tuple(time.perf_counter() for _ in answer)
    return [Record(sent_s, stamps, len(stamps))]


def run_batch(model: Any, tokenizer: Any, prompts: list[str], max_tokens: int) -> list[Record]:
    """Generate from all prompts together, greedy."""
    from mlx_lm.generate import BatchGenerator

    sent_s = time.perf_counter()
    stop_tokens = [[token] for token in tokenizer.eos_token_ids]
    generator = BatchGenerator(model, max_tokens=max_tokens, stop_tokens=stop_tokens)
    try:
        stamps: dict[int, list[float]] = {uid: [] for uid in generator.insert([tokenizer.encode(p) for p in prompts])}
        while responses := generator.next_generated():
            now_s = time.perf_counter()
            for response in responses:
                stamps[response.uid].append(now_s)
    finally:
        generator.close()
    return [Record(sent_s, tuple(times), len(times)) for times in stamps.values()]


class KeptCache:
    """One prompt cache for sequential prompts, trimmed to the prefix that the next shares with the last."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._caches: list[Any] = []
        self._ids: list[int] = []

    def run(self, prompt: str, max_tokens: int) -> list[Record]:
        """Generate greedily; at least the prompt's last token is computed again."""
        from mlx_lm import stream_generate
        from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

        sent_s = time.perf_counter()
        ids: list[int] = self._tokenizer.encode(prompt)
        shared = next((i for i, pair in enumerate(zip(ids, self._ids, strict=False)) if pair[0] != pair[1]), 0)
        surplus = self._caches[0].offset - shared if self._caches else 0
        if not shared or trim_prompt_cache(self._caches, surplus) != surplus:
            shared, self._caches = 0, make_prompt_cache(self._model)
        self._ids = ids
        answer = stream_generate(
            self._model, self._tokenizer, ids[shared:], max_tokens=max_tokens, prompt_cache=self._caches
        )
        stamps = tuple(time.perf_counter() for _ in answer)
        return [Record(sent_s, stamps, len(stamps))]


if __name__ == "__main__":
    main(sys.argv[1])
