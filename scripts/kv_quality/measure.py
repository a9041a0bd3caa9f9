"""Change of a model's predictions with a quantized KV cache, on conversations that training never sees.

The held-out text is read with the cache under test, every token predicted from the cached tokens before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlx_backend.api.interface import KVCacheConfig
from mlx_backend.kv_cache import attention
from mlx_backend.kv_cache.build import quantized, read_shapes
from mlx_backend.kv_cache.plan import plan_caches

CHUNK = 512

Text = tuple[Sequence[int], Sequence[bool]]
"""Token ids, and which of them the assistant wrote: those are predicted."""


@dataclass(frozen=True, slots=True)
class Drift:
    """Measures over the assistant's tokens.

    Perplexity; KL divergence from the full-precision predictions, nats per token; share of tokens with the same
    likeliest token; bytes of a token in all layers.
    """

    perplexity: float
    kl: float
    worst_kl: float
    same_top: float
    bytes_per_token: int
    full_bytes_per_token: int


class Reader:
    """Reader of texts with a model whose KV cache may be quantized."""

    def __init__(self, model: Any, config: dict[str, Any]) -> None:
        self._model, self._config = model, config
        attention.install()

    def read(self, texts: Iterable[Text], kv_cache: KVCacheConfig) -> tuple[list[mx.array], int, int]:
        """Return (log-probabilities of each text's predicted positions [tokens, vocab], bytes per token, in full)."""
        probe = make_prompt_cache(self._model)
        self._model(mx.zeros((1, 1), dtype=mx.int32), cache=probe)
        plans = plan_caches(read_shapes(probe, self._config), kv_cache)
        full = plan_caches([plan.shape for plan in plans], KVCacheConfig())

        def make() -> list[Any]:
            return quantized(make_prompt_cache(self._model), plans)

        read = [self._read_one(ids, marks, make()) for ids, marks in texts]
        return read, sum(plan.bytes_per_token for plan in plans), sum(plan.bytes_per_token for plan in full)

    def _read_one(self, ids: Sequence[int], marks: Sequence[bool], caches: list[Any]) -> mx.array:
        found = []
        for start in range(0, len(ids) - 1, CHUNK):
            inputs = mx.array([ids[start : min(start + CHUNK, len(ids) - 1)]])
            logits = self._model(inputs, cache=caches)[0].astype(mx.float32)
            places = [i for i in range(inputs.shape[1]) if marks[start + i + 1]]
            if places:
                chosen = logits[mx.array(places)]
                found.append(chosen - mx.logsumexp(chosen, axis=-1, keepdims=True))
            mx.eval(found, [cache.state for cache in caches])
        return mx.concatenate(found)


def drift(texts: Sequence[Text], full: Sequence[mx.array], read: Sequence[mx.array], sizes: tuple[int, int]) -> Drift:
    """Return the loss of `read` against `full`, both as returned by Reader.read for `texts`."""
    targets = [mx.array([t for t, mark in zip(ids[1:], marks[1:], strict=True) if mark]) for ids, marks in texts]
    nll, kl, same = [], [], []
    for target, before, after in zip(targets, full, read, strict=True):
        nll.append(-mx.take_along_axis(after, target[:, None], axis=-1)[:, 0])
        kl.append((mx.exp(before) * (before - after)).sum(axis=-1))
        same.append(before.argmax(-1) == after.argmax(-1))
    return Drift(
        perplexity=exp(_mean(nll)),
        kl=_mean(kl),
        worst_kl=max(float(part.max()) for part in kl),
        same_top=_mean(same),
        bytes_per_token=sizes[0],
        full_bytes_per_token=sizes[1],
    )


def _mean(parts: Iterable[mx.array]) -> float:
    return float(mx.concatenate([part.astype(mx.float32) for part in parts]).mean())


def read_all(
    reader: Reader, texts: Sequence[Text], settings: dict[str, KVCacheConfig], say: Callable[[str], None]
) -> dict[str, Drift]:
    """Return the drift of every setting; the first one is full precision."""
    found: dict[str, Drift] = {}
    full: list[mx.array] = []
    for name, setting in settings.items():
        say(name)
        read, *sizes = reader.read(texts, setting)
        full = full or read
        found[name] = drift(texts, full, read, (sizes[0], sizes[1]))
    return found
