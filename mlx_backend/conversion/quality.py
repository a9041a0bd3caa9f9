"""Two models compared on the same tokens: KL divergence, agreement of the next token, perplexity.

A model that is larger than memory is computed layer by layer: all tokens go through a layer, then its weights are
freed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import LoadProgress
from mlx_backend.conversion.cpu_matmul import use_numpy
from mlx_backend.conversion.errors import ConversionError
from mlx_backend.conversion.measured import Quality, Sample, first_tokens
from mlx_backend.model.checkpoint import open_checkpoint
from mlx_backend.model.loader import build_model

MOST_TOKENS = 8192
"""Most tokens that are compared: the logits of all predicted ones are held."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples that are computed together: their tokens [n, length], and their places among all samples."""

    tokens: mx.array
    places: tuple[int, ...]


def batches_of(samples: Sequence[Sample], *, is_one: bool = False) -> list[Batch]:
    """Group samples of one length, so that no padding is computed.

    `is_one`: all in one batch, as long as the longest. Padding follows the tokens of the others, so that it changes no
    prediction.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    longest = max(len(sample.ids) for sample in samples)
    for place, sample in enumerate(samples):
        groups[longest if is_one else len(sample.ids)].append(place)
    return [
        Batch(mx.array([_filled(samples[place].ids, length) for place in places]), tuple(places))
        for length, places in sorted(groups.items())
    ]


def _filled(ids: tuple[int, ...], length: int) -> list[int]:
    return [*ids, *ids[-1:] * (length - len(ids))]


def compare(
    source: Path, other: Path, samples: Sequence[Sample], free_bytes: int, report: Callable[[LoadProgress], None]
) -> Quality:
    """Compare the model in `other` with that in `source`. `free_bytes`: free memory. Raises ConversionError."""
    samples = first_tokens(samples, MOST_TOKENS)
    if not samples:
        raise ConversionError("the text has no two tokens; give a longer one")
    expected = logits_of(source, samples, free_bytes, report)
    found = logits_of(other, samples, free_bytes, report)
    if expected[0].shape != found[0].shape:
        raise ConversionError(
            f"{source} has {expected[0].shape[-1]} tokens and {other} has {found[0].shape[-1]}; nothing to compare"
        )
    return measure(expected, found, samples)


def measure(expected: Sequence[mx.array], found: Sequence[mx.array], samples: Sequence[Sample]) -> Quality:
    """Compare logits of the predicted tokens of each sample, [number, vocabulary]."""
    kl, agree, own, theirs, number = 0.0, 0, 0.0, 0.0, 0
    for sample, *logits in zip(samples, expected, found, strict=True):
        a, b = map(log_probabilities, logits)
        nexts = mx.array(sample.ids[sample.first :])[:, None]
        kl += (mx.exp(a) * (a - b)).sum().item()
        agree += (a.argmax(-1) == b.argmax(-1)).sum().item()
        theirs -= mx.take_along_axis(a, nexts, -1).sum().item()
        own -= mx.take_along_axis(b, nexts, -1).sum().item()
        number += nexts.shape[0]
    return Quality(number, kl / number, agree / number, math.exp(own / number), math.exp(theirs / number))


def mean_kl(expected: Sequence[mx.array], found: Sequence[mx.array]) -> float:
    """Return the mean KL divergence of logits from expected log-probabilities, both [number, vocabulary] each."""
    sums = [(mx.exp(a) * (a - log_probabilities(b))).sum() for a, b in zip(expected, found, strict=True)]
    return float(mx.stack(sums).sum().item() / sum(a.shape[0] for a in expected))


def log_probabilities(logits: mx.array) -> mx.array:
    wide = logits.astype(mx.float32)
    return wide - mx.logsumexp(wide, axis=-1, keepdims=True)


def logits_of(
    folder: Path, samples: Sequence[Sample], free_bytes: int, report: Callable[[LoadProgress], None]
) -> list[mx.array]:
    """Return a model's logits for the predicted tokens of each sample. Raises ConversionError."""
    model = open_model(folder)
    weights = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    is_freed = weights > free_bytes // 2
    batches = batches_of(samples, is_one=is_freed)
    _watch(model, weights * len(batches), report, is_freed=is_freed)
    try:
        found = [each for batch in batches for each in predicted(model(batch.tokens), batch, samples)]
    except (RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConversionError(f"{folder} cannot be computed ({reason})") from None
    del model
    mx.clear_cache()
    places = [place for batch in batches for place in batch.places]
    return [logits for _, logits in sorted(zip(places, found, strict=True), key=lambda each: each[0])]


def predicted(logits: mx.array, batch: Batch, samples: Sequence[Sample]) -> list[mx.array]:
    """Return, computed, the logits of a batch's samples at places that predict a token that counts."""
    kept = []
    for row, place in enumerate(batch.places):
        sample = samples[place]
        kept.append(mx.contiguous(logits[row, sample.first - 1 : len(sample.ids) - 1]))
    mx.eval(kept)
    return kept


def open_model(folder: Path) -> Any:
    """Return the model in a folder, not read yet; on a CPU in float32, the only dtype for MLX's experts there.

    Raises ConversionError.
    """
    try:
        model: Any = build_model(open_checkpoint(folder))
    except ModelLoadError as error:
        raise ConversionError(str(error)) from None
    if mx.default_device().type == mx.DeviceType.cpu:
        model.set_dtype(mx.float32)
        use_numpy(model)
    return model


def _watch(model: Any, total: int, report: Callable[[LoadProgress], None], *, is_freed: bool) -> None:
    """Have each layer computed before the next one begins, and its weights freed then, if `is_freed`."""
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
