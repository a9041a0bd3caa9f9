"""Speed of decoding and prefill on a Mac: two formulas, fitted to published measurements. No MLX.

    decode    step_s = layers x overhead + (weights read / W + KV read / K + KV of every query head / Q) / bandwidth
    prefill   tok/s  = GPU cores x F / (2 x active parameters + 2 x attention width x (context / 2) / A)

`overhead` is the cost of a layer that does not depend on the bytes it reads (kernels that wait for one another); W and
K are the shares of the bandwidth that reading weights and KV reach; Q is the same if every query head reads the KV that
it shares with others, most of it out of caches; F is the FLOP/s a GPU core reaches in a prefill, and A the share of
that in attention. The constants below were fitted to the rows of `data/anchors.json`, which give their sources;
`residuals()` compares them with every row. An estimate's margin is the error that remains on those rows.

Not covered: thermal limits, paging, a prompt too short to fill the GPU (under about 500 tokens), several machines. No
row measures a batch, a vision model, or an M1, M5 or M6.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from mlx_backend.planning.machines import Machine, find_machine

Quantity = Literal["decode", "prefill"]

_ROWS = Path(__file__).parent / "data" / "anchors.json"

_LAYER_OVERHEAD_S = {1: 80e-6, 2: 80e-6, 3: 60e-6, 4: 43e-6}
_ULTRA_OVERHEAD_S = {1: 175e-6, 2: 175e-6, 3: 80e-6, 4: 80e-6}
"""Overhead of a layer, by generation of the chip, of one die and of two; later chips are taken for the newest fitted.
M1's are M2's, M3's of one die is between its neighbours', and the fourth Ultra's the third's: none of these was
measured."""
_DENSE_SHARE, _MOE_SHARE = 0.90, 0.615
"""Share of the bandwidth while reading weights; experts are gathered, which reads less evenly."""
_KV_SHARE, _QUERY_SHARE, _LATENT_KV_SHARE = 0.6, 4.45, 0.107
"""Share of the bandwidth while reading KV, and KV once per query head. All heads share one latent and multiply its
numbers about twice each: 128 heads, as measured, are bound by FLOP/s and not by bytes (those of `_DENSE_FLOPS` and
`_ATTENTION_SHARE`, within 3 %). So heads as rows of one product read less and multiply as often. MLX makes such a
product of a single row by itself (Matmul::eval_gpu); `latent_attention` makes several rows take no longer each."""

_DENSE_FLOPS = {1: 275e9, 2: 300e9, 3: 305e9, 4: 352e9}
"""FLOP/s per GPU core. M1 and M2 are M3's by clock, unmeasured."""
_MOE_FLOPS = {1: 75e9, 2: 80e9, 3: 228e9, 4: 300e9}
"""Likewise; M1 is M2's by clock, unmeasured."""
_ATTENTION_SHARE = 0.85

_NEWEST_FITTED = 4
_LEAST_MARGIN, _UNMEASURED_MARGIN = 0.10, 0.25
_MATRIX_UNITS = 4.0
"""M5 and later have matrix units in the GPU: up to this multiple of M4's prefill, by Apple. No row measures it."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A speed in tokens per second, and the range the anchors suggest: low <= value <= high."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """Inputs of the formulas for a model, and the basis of the figures."""

    id: str
    name: str
    is_moe: bool
    is_latent: bool
    num_layers: int
    active_parameters: int
    weights_bytes: int
    active_bytes: int
    kv_bytes_per_token: int
    attention_width: int
    basis: str


@dataclass(frozen=True, slots=True)
class Anchor:
    """One published measurement; None for values it does not give."""

    id: str
    model: ModelFigures
    machine: Machine
    context_tokens: int
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    peak_bytes: int | None
    stack: str
    source: str
    note: str


@dataclass(frozen=True, slots=True)
class Residual:
    """A prediction beside its measurement, both in tokens per second."""

    name: str
    quantity: Quantity
    predicted: float
    measured: float
    is_moe: bool
    generation: int
    source: str

    @property
    def error(self) -> float:
        """0.1 if the prediction is 10 % too fast."""
        return self.predicted / self.measured - 1.0


@cache
def load_anchors() -> tuple[Anchor, ...]:
    """Return every row of the data file, with its model and machine."""
    data = json.loads(_ROWS.read_text(encoding="utf-8"))
    models = {row["id"]: ModelFigures(**row) for row in data["models"]}
    return tuple(
        Anchor(**{**row, "model": models[row["model"]], "machine": find_machine(row["machine"])})
        for row in data["measurements"]
    )


def decode_estimate(
    active_bytes: float,
    kv_read_bytes: float,
    machine: Machine,
    num_layers: int,
    is_moe: bool,
    num_sequences: int = 1,
    *,
    is_latent: bool = False,
    query_read_bytes: float = 0.0,
    routed_bytes: float | None = None,
    routed_share: float = 0.0,
    num_drafts: int = 0,
) -> Estimate | None:
    """Return steps per second, one token for each of `num_sequences`; None if the machine's speed is unknown.

    `active_bytes` are the weights one token reads, without the embedding table; `kv_read_bytes` the KV of one sequence.
    With `is_latent` it is a latent that all heads share; otherwise `query_read_bytes` is that KV once for every query
    head. Sequences of a mixture of experts read different experts: `routed_bytes` are the part of `active_bytes` in
    routed experts (default: all of it), and `routed_share` the experts per token out of all (default: no two sequences
    ever share one). `num_drafts`, of all sequences, are verified in the same step: they read their own experts, and the
    KV of their sequence with it.
    """
    if num_sequences < 1:
        raise ValueError(f"num_sequences is {num_sequences}; at least one sequence decodes")
    if not machine.bandwidth or machine.generation is None:
        return None
    routed = (active_bytes if routed_bytes is None else routed_bytes) if is_moe else 0.0
    weights = active_bytes - routed + routed * _distinct(num_sequences + num_drafts, routed_share)
    kv_s = num_sequences * _kv_s(kv_read_bytes, query_read_bytes, machine, is_latent)
    value = 1.0 / (_weights_s(weights, machine, num_layers, is_moe) + kv_s)
    return _with_margin(value, "decode", is_moe, machine.generation, is_measured=num_sequences == 1)


def prefill_estimate(
    active_parameters: float, context_tokens: int, machine: Machine, *, is_moe: bool, attention_width: int
) -> Estimate | None:
    """Return tokens per second over a whole prompt of `context_tokens`; None if the machine's speed is unknown.

    `active_parameters` are those one token multiplies with, including the output head. `attention_width` is the sum
    over the layers with full attention of heads x (key dimension + value dimension).
    """
    if not machine.gpu_cores or machine.generation is None:
        return None
    value = _prefill_tokens_per_s(active_parameters, context_tokens, machine, is_moe, attention_width)
    estimate = _with_margin(value, "prefill", is_moe, machine.generation, is_measured=True)
    if machine.generation <= _NEWEST_FITTED:
        return estimate
    return Estimate(estimate.value, estimate.low, value * _MATRIX_UNITS)


@cache
def residuals() -> tuple[Residual, ...]:
    """Return prediction and measurement for every anchor, decode before prefill."""
    rows: list[Residual] = []
    for anchor in load_anchors():
        if anchor.decode_tokens_per_s is not None:
            rows.append(_residual(anchor, "decode", _predicted_decode(anchor), anchor.decode_tokens_per_s))
    for anchor in load_anchors():
        if anchor.prefill_tokens_per_s is not None:
            rows.append(_residual(anchor, "prefill", _predicted_prefill(anchor), anchor.prefill_tokens_per_s))
    return tuple(rows)


def _distinct(num_sequences: int, share: float) -> float:
    """Return the experts that this many tokens choose together, relative to one token's, each at random."""
    if share <= 0.0:
        return float(num_sequences)
    return float((1.0 - (1.0 - min(share, 1.0)) ** num_sequences) / min(share, 1.0))


def _weights_s(weights_bytes: float, machine: Machine, num_layers: int, is_moe: bool) -> float:
    overheads = _ULTRA_OVERHEAD_S if machine.chip.endswith("Ultra") else _LAYER_OVERHEAD_S
    read_s = weights_bytes / (_MOE_SHARE if is_moe else _DENSE_SHARE) / machine.bandwidth
    return num_layers * overheads[_fitted(machine.generation)] + read_s


def _kv_s(kv_bytes: float, query_bytes: float, machine: Machine, is_latent: bool) -> float:
    if is_latent:
        return kv_bytes / _LATENT_KV_SHARE / machine.bandwidth
    return (kv_bytes / _KV_SHARE + query_bytes / _QUERY_SHARE) / machine.bandwidth


def _prefill_tokens_per_s(
    active_parameters: float, context_tokens: int, machine: Machine, is_moe: bool, attention_width: int
) -> float:
    # A token attends to half of the prompt on average; each pair costs a product with a key and one with a value.
    attention = 2.0 * attention_width * context_tokens / 2.0 / _ATTENTION_SHARE
    core_flops = (_MOE_FLOPS if is_moe else _DENSE_FLOPS)[_fitted(machine.generation)]
    return machine.gpu_cores * core_flops / (2.0 * active_parameters + attention)


def _fitted(generation: int | None) -> int:
    return min(generation or _NEWEST_FITTED, _NEWEST_FITTED)


def _with_margin(value: float, quantity: Quantity, is_moe: bool, generation: int, *, is_measured: bool) -> Estimate:
    """Return the range of the anchors of this kind and generation.

    With fewer than two of them, or if `is_measured` is false, it is the range of this kind in all generations, and
    wider.
    """
    kind = [row for row in residuals() if row.quantity == quantity and row.is_moe == is_moe]
    near = [row for row in kind if row.generation == generation]
    is_near = is_measured and len(near) >= 2
    ratios = [row.measured / row.predicted for row in (near if is_near else kind)]
    least = _LEAST_MARGIN if is_near else _UNMEASURED_MARGIN
    return Estimate(value, value * min(1.0 - least, *ratios), value * max(1.0 + least, *ratios))


def _predicted_decode(anchor: Anchor) -> float:
    model = anchor.model
    kv_bytes = model.kv_bytes_per_token * anchor.context_tokens
    query_bytes = 2 * model.attention_width * anchor.context_tokens
    weights_s = _weights_s(model.active_bytes, anchor.machine, model.num_layers, model.is_moe)
    return 1.0 / (weights_s + _kv_s(kv_bytes, query_bytes, anchor.machine, model.is_latent))


def _predicted_prefill(anchor: Anchor) -> float:
    model = anchor.model
    return _prefill_tokens_per_s(
        model.active_parameters, anchor.context_tokens, anchor.machine, model.is_moe, model.attention_width
    )


def _residual(anchor: Anchor, quantity: Quantity, predicted: float, measured: float) -> Residual:
    return Residual(
        name=anchor.id,
        quantity=quantity,
        predicted=predicted,
        measured=measured,
        is_moe=anchor.model.is_moe,
        generation=anchor.machine.generation or 0,
        source=anchor.source,
    )
