"""Two models compared on the same tokens: KL divergence, agreement of the next token, perplexity.

A model that is larger than memory is computed layer by layer: all tokens go through a layer, and its weights are
freed then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import LoadProgress
from mlx_backend.conversion.errors import ConversionError
from mlx_backend.conversion.measured import Quality
from mlx_backend.model.checkpoint import open_checkpoint
from mlx_backend.model.loader import build_model

SEQUENCE_TOKENS = 512
MOST_TOKENS = 8192
"""So many tokens are compared at most: logits of all are held."""


def sequences_of(ids: Sequence[int], length: int = SEQUENCE_TOKENS) -> mx.array:
    """Cut a text's tokens into sequences [n, length]; what does not fill one is left out. Raises ConversionError."""
    ids = ids[:MOST_TOKENS]
    length = min(length, len(ids))
    if length < 2:
        raise ConversionError("the text has no two tokens; give a longer one")
    number = len(ids) // length
    return mx.array(ids[: number * length]).reshape(number, length)


def compare(
    source: Path, other: Path, ids: Sequence[int], free_bytes: int, report: Callable[[LoadProgress], None]
) -> Quality:
    """Compare the model in `other` with that in `source`. `free_bytes`: of memory. Raises ConversionError."""
    tokens = sequences_of(ids)
    expected = logits_of(source, tokens, free_bytes, report)
    found = logits_of(other, tokens, free_bytes, report)
    if expected.shape != found.shape:
        raise ConversionError(
            f"{source} has {expected.shape[-1]} tokens and {other} has {found.shape[-1]}; nothing to compare"
        )
    return measure(expected, found, tokens)


def measure(expected: mx.array, found: mx.array, tokens: mx.array) -> Quality:
    """Compare logits [n, length, vocabulary] of the same tokens; the last of each sequence predicts nothing known."""
    kl, agree, own, theirs, number = 0.0, 0, 0.0, 0.0, 0
    for place in range(tokens.shape[0]):
        a, b = (log_probabilities(each[place, :-1]) for each in (expected, found))
        nexts = tokens[place, 1:, None]
        kl += (mx.exp(a) * (a - b)).sum().item()
        agree += (a.argmax(-1) == b.argmax(-1)).sum().item()
        theirs -= mx.take_along_axis(a, nexts, -1).sum().item()
        own -= mx.take_along_axis(b, nexts, -1).sum().item()
        number += nexts.shape[0]
    return Quality(number, kl / number, agree / number, math.exp(own / number), math.exp(theirs / number))


def mean_kl(expected: mx.array, found: mx.array) -> float:
    """The mean KL divergence of logits from log-probabilities that are expected, both [n, length, vocabulary]."""
    rows = [(mx.exp(a) * (a - log_probabilities(b))).sum().item() for a, b in zip(expected, found, strict=True)]
    return float(sum(rows) / (expected.shape[0] * expected.shape[1]))


def log_probabilities(logits: mx.array) -> mx.array:
    wide = logits.astype(mx.float32)
    return wide - mx.logsumexp(wide, axis=-1, keepdims=True)


def logits_of(folder: Path, tokens: mx.array, free_bytes: int, report: Callable[[LoadProgress], None]) -> mx.array:
    """The logits of a model for sequences of tokens. Raises ConversionError."""
    model = open_model(folder)
    weights = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    _watch(model, weights, report, is_freed=weights > free_bytes // 2)
    try:
        logits = model(tokens)
        mx.eval(logits)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConversionError(f"{folder} cannot be computed ({reason})") from None
    del model
    mx.clear_cache()
    return logits


def open_model(folder: Path) -> Any:
    """The model in a folder, not read yet; on a CPU in float32, the one dtype that MLX multiplies by experts there.

    Raises ConversionError.
    """
    try:
        model: Any = build_model(open_checkpoint(folder))
    except ModelLoadError as error:
        raise ConversionError(str(error)) from None
    if mx.default_device().type == mx.DeviceType.cpu:
        model.set_dtype(mx.float32)
    return model


def _watch(model: Any, total: int, report: Callable[[LoadProgress], None], *, is_freed: bool) -> None:
    """Have each layer computed before the next one is begun, and its weights freed then, where that is asked for."""
    done = 0

    def watched(kind: type) -> type:
        def call(self: Any, *args: Any, **options: Any) -> Any:
            nonlocal done
            out = kind.__call__(self, *args, **options)
            mx.eval(out)
            done += sum(array.nbytes for _, array in tree_flatten(self.parameters()))
            if is_freed:
                self.update(tree_map(lambda array: mx.zeros(array.shape, array.dtype), self.parameters()))
                mx.clear_cache()
            report(LoadProgress(done_bytes=min(done, total), total_bytes=total))
            return out

        return type(kind.__name__, (kind,), {"__call__": call})

    kinds: dict[type, type] = {}
    for layer in model.layers:
        if isinstance(layer, nn.Module):
            kind = type(layer)
            layer.__class__ = kinds.setdefault(kind, watched(kind))
